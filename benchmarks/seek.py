"""Measures how long the first batch takes after resuming within an epoch, against the first batch of an epoch.

python -m benchmarks.seek FOLDER --out benchmarks/results/seek.json [--global-batch 64] [--rounds 9]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.result_file import installed_versions, write_result_file
from configs.data import DataConfig
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.loader import LoaderState, ShardLoader

COLUMNS = {
    "workers": ["workers", "d"],
    "place": ["resumed at", "s"],
    "first_batch_s": ["first batch, s", ".3f"],
    "ratio": ["of the first at the start", ".2f"],
}
PLACES = {"the start": 0.0, "a quarter": 0.25, "half": 0.5, "nine tenths": 0.9, "the last batch": 1.0}


def main(arguments: list[str]) -> int:
    """Writes one row per number of workers and place; places are interleaved in every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--global-batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    given = parser.parse_args(arguments)
    index = open_index(given.folder)
    rows = []
    for workers in given.workers:
        data = DataConfig(
            train=given.folder,
            image_size=given.image_size,
            channels=given.channels,
            mean=(0.5,) * given.channels,
            std=(0.5,) * given.channels,
            workers=workers,
        )
        rows += _rows(index, data, given.global_batch, given.rounds)
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"From asking a new loader to its first batch of {given.global_batch} images, the workers' start "
            f"included; medians of {given.rounds} interleaved rounds, a new epoch in each. {index.num_samples:,} "
            f"images in {len(index.shards)} shards, page cache warm."
        ),
        versions=installed_versions(["torch", "numpy"]),
    )
    return 0


def _rows(index: ShardIndex, data: DataConfig, global_batch: int, rounds: int) -> list[dict[str, object]]:
    _first_batch_s(index, data, global_batch, epoch=0, share=0.0)  # what happens once per process
    found: dict[str, list[float]] = {place: [] for place in PLACES}
    for epoch in range(rounds):
        for place, share in PLACES.items():
            found[place].append(_first_batch_s(index, data, global_batch, epoch=epoch, share=share))
    start = median(found["the start"])
    return [
        {
            "workers": data.workers,
            "place": place,
            "first_batch_s": median(times),
            "ratio": median(times) / start,
        }
        for place, times in found.items()
    ]


def _first_batch_s(
    index: ShardIndex, data: DataConfig, global_batch: int, *, epoch: int, share: float
) -> float:
    start = time.perf_counter()
    loader = ShardLoader(index, data, global_batch=global_batch, seed=0)
    step = round(share * (loader.batches_per_epoch - 1))
    loader.load_state_dict(LoaderState(version=1, epoch=epoch, samples=step * global_batch))
    next(iter(loader))
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
