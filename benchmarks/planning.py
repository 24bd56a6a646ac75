"""Measures what the order of a huge corpus costs one rank: opening the index, the first plan, and each further sample.

python -m benchmarks.planning --out benchmarks/results/planning.json [--samples 1000000000] [--shards 100000]

The index is synthetic: every shard is described in `_info.json`; row files exist for those the measured rank opens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.result_file import installed_versions, write_result_file
from configs.data import DataConfig
from data_pipeline.index import SAMPLE, open_index
from data_pipeline.order.plan import rank_slots
from data_pipeline.order.run_order import RunOrder

COLUMNS = {
    "global_batch": ["global batch", ",d"],
    "share": ["images per rank", "d"],
    "streams": ["streams", ",d"],
    "open_s": ["opening the index, s", ".2f"],
    "first_s": ["first plan, s", ".3f"],
    "memory_mb": ["memory of both, MB", ".0f"],
    "sample_us": ["further samples, us each", ".2f"],
    "index_bytes": ["index, bytes per sample", ".1f"],
}
_WINDOWS = 6  # amortized over so many windows of a stream


def main(arguments: list[str]) -> int:
    """Measures in processes of their own, in rounds, and writes medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=1_000_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--shares", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "SHARE", "ROUND"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        folder, share, number = given.measure
        json.dump(_measure(Path(folder), int(share), int(number), given.ranks), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_index(Path(folder), given.samples, given.shards)
        found: dict[int, list[dict[str, float]]] = {share: [] for share in given.shares}
        for number in range(given.rounds):
            for share in given.shares:
                found[share].append(_measure_aside(folder, share, number, given.ranks))
        row_bytes = SAMPLE.itemsize + 128 * given.shards / given.samples  # 128: a row file's header
        index_bytes = row_bytes + (Path(folder) / "_info.json").stat().st_size / given.samples
    rows = [
        {**{key: median(one[key] for one in rounds) for key in rounds[0]}, "index_bytes": index_bytes}
        for rounds in found.values()
    ]
    for row in rows:
        row |= {key: int(row[key]) for key in ("global_batch", "share", "streams")}
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{given.samples:,} samples in {given.shards:,} shards, {given.ranks:,} ranks; medians of {given.rounds} "
            "rounds of random ranks and positions. Memory is what the process grew by after its imports."
        ),
        versions=installed_versions(["numpy"]),
    )
    return 0


def write_synthetic_index(folder: Path, num_samples: int, num_shards: int) -> None:
    """The `_info.json` of shards that are not there; lengths differ by up to a tenth."""
    lengths = np.random.default_rng(0).integers(9, 12, num_shards) * (num_samples // num_shards) // 10
    lengths[-1] += num_samples - int(lengths.sum())
    names = [f"train-{number:06d}.tar" for number in range(num_shards)]
    shards = [
        {"bytes": int(length) * 110_000, "digest": f"{number:032x}"} for number, length in enumerate(lengths)
    ]
    split = {
        "name": "train",
        "num_samples": num_samples,
        "filenames": names,
        "shard_lengths": lengths.tolist(),
    }
    ours = {"version": 1, "base": None, "classes": ["a", "b"], "shards": shards, "source": ""}
    info = {"name": "synthetic", "splits": {"train": split}, "mirada": ours}
    (folder / "_info.json").write_text(json.dumps(info, indent=1))


def _measure_aside(folder: str, share: int, number: int, ranks: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.planning", "--ranks", str(ranks), "--measure", folder]
    done = subprocess.run(
        [*command, str(share), str(number)], check=True, capture_output=True, env=os.environ
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(folder: Path, share: int, number: int, ranks: int) -> dict[str, Any]:
    rng = np.random.default_rng([share, number])
    before = peak_mb()
    began = time.perf_counter()
    index = open_index(str(folder))
    opened = time.perf_counter()
    data = DataConfig(train=str(folder))
    order = RunOrder(index, data, global_batch=share * ranks, seed=number)
    slots = rank_slots(share * ranks, int(rng.integers(ranks)), ranks)
    flat_step = int(rng.integers(3 * order.batches_per_epoch))
    order.share(flat_step, slots)
    planned = time.perf_counter()
    memory = peak_mb() - before
    per_window = (
        data.shuffle_window * index.num_samples // len(index.shards) * order.num_streams // (share * ranks)
    )
    steps = max(_WINDOWS * per_window, 2000)
    start = time.perf_counter()
    for step in range(flat_step, flat_step + steps):
        order.share(step, slots)
    seconds = time.perf_counter() - start
    return {
        "global_batch": share * ranks,
        "share": share,
        "streams": order.num_streams,
        "open_s": opened - began,
        "first_s": planned - opened,
        "memory_mb": memory,
        "sample_us": seconds / (steps * share) * 1e6,
    }


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
