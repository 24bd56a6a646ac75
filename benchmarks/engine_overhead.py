"""Measures what the engine costs: Trainer.fit at ZeRO 0 and 1 against a bare PyTorch loop with the same batches.

python -m benchmarks.engine_overhead --out benchmarks/results/engine_overhead.json [--rounds 5] [--minutes 8] [--quick]

One rank; the event log, meters and the MLflow follower are on. Every training is a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_rounds import COLUMNS, Setting, Variant, measure_rounds, rows_of

WANTED = 0.97
VARIANTS = (
    Variant(name="bare PyTorch loop", loop="bare"),
    Variant(name="Trainer.fit, ZeRO 0", loop="ours", settings=("zero.stage=0",)),
    Variant(name="Trainer.fit, ZeRO 1", loop="ours", settings=("zero.stage=1",)),
)


def main(arguments: list[str]) -> int:
    """Writes one row per loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to try it")
    given = parser.parse_args(arguments)
    setting = Setting(
        recipe="configs/pretrain/fashion_mnist_teacher.yaml",
        global_batch=192,
        steps=8 if given.quick else 70,
        skipped=3 if given.quick else 30,
        settings=(
            *("data.train=mirada://sample/train", "data.val=null", "train.ema=null"),
            *("schedule.warmup=2 steps", "train.checkpoint_every=1000 steps"),
        ),
    )
    rounds = 1 if given.quick else given.rounds
    found = measure_rounds(VARIANTS, setting, rounds=rounds, minutes=given.minutes)
    rows = rows_of(found, setting)
    reached = ", ".join(f"{row['ratio']:.3f}" for row in rows[1:])
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"The same loader, batches, model (residual_vit, 0.56 M parameters), objective, AdamW and schedule; "
            f"one rank, batches of {setting.global_batch}; log, meters and MLflow's follower on. Medians over "
            f"{len(next(iter(found.values())))} interleaved rounds of {setting.steps - setting.skipped} steps. "
            f"Wanted are {WANTED} of the bare loop: {reached}."
        ),
        versions=installed_versions(["torch", "deepspeed", "mlflow", "timm"]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
