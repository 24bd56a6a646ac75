"""Measures what checkpoints cost: the throughput of a run that saves every 50 steps against one that does not.

python -m benchmarks.checkpoint_cost --out benchmarks/results/checkpoint_cost.json [--rounds 3] [--minutes 8] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_rounds import COLUMNS, Setting, Variant, measure_rounds, rows_of

EVERY = 50
WANTED = 0.97
VARIANTS = (
    Variant(name="no checkpoint", loop="ours"),
    Variant(
        name=f"a checkpoint every {EVERY} steps",
        loop="ours",
        settings=(f"train.checkpoint_every={EVERY} steps",),
    ),
)


def main(arguments: list[str]) -> int:
    """Writes one row per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to try it")
    given = parser.parse_args(arguments)
    setting = Setting(  # a whole number of intervals is counted, and the saves within them
        recipe="benchmarks/checkpoint_cost.yaml",
        global_batch=8,
        steps=54 if given.quick else 172,
        skipped=2 if given.quick else 20,
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
            "ViT-Ti with EMA at ZeRO 1, one rank; a checkpoint is 110 MB, written in the background and made durable. "
            f"Medians over {len(next(iter(found.values())))} interleaved rounds of {setting.steps - setting.skipped} "
            f"steps. Wanted is {WANTED} of the run without: {rows[1]['ratio']:.3f}."
        ),
        versions=installed_versions(["torch", "deepspeed"]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
