"""Measures a training from photographs in shards: Mirada against the parts of timm's train script.

python -m benchmarks.photographs CORPORA --only jpeg
python -m benchmarks.timm_train CORPORA/jpeg --out benchmarks/results/timm_train.json [--minutes 8] [--quick]

timm's script itself is not in its package: benchmarks/training_loops/timm_parts.py is its loop, made of timm's own
reader of webdataset shards, transforms, loader, task and optimizer. Same shards, model, crops, flips, batch, workers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_rounds import COLUMNS, Setting, Variant, measure_rounds, rows_of

WANTED = 1.10
MODEL = "vit_tiny_patch16_224"
_SIZE, _WORKERS = 64, 2
VARIANTS = (
    Variant(name="timm's parts, as its train script joins them", loop="timm_parts"),
    Variant(name="mirada pretrain", loop="ours", settings=("zero.stage=1",)),
)


def main(arguments: list[str]) -> int:
    """Writes one row per program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder of indexed shards of photographs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to try it")
    given = parser.parse_args(arguments)
    setting = Setting(
        recipe="benchmarks/timm_train.yaml",
        global_batch=64,
        steps=8 if given.quick else 70,
        skipped=3 if given.quick else 20,
        settings=(
            f"data.train={given.corpus.resolve()}",
            f"data.image_size={_SIZE}",
            f"data.workers={_WORKERS}",
            f"model.name={MODEL}",
        ),
    )
    found = measure_rounds(
        VARIANTS, setting, rounds=1 if given.quick else given.rounds, minutes=given.minutes
    )
    rows = rows_of(found, setting)
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{MODEL} at {_SIZE}x{_SIZE} from photographs of 500x375 in the same shards (page cache warm), random "
            f"resized crop and flip, {_WORKERS} loader workers, batches of {setting.global_batch}, one rank. Medians "
            f"over {len(next(iter(found.values())))} interleaved rounds of {setting.steps - setting.skipped} steps. "
            f"Wanted is {WANTED} of timm's: {rows[1]['ratio']:.3f}."
        ),
        versions=installed_versions(["torch", "timm", "deepspeed", "webdataset"]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
