"""Measures what the engine costs: Trainer.fit at ZeRO 0 and 1 against a bare PyTorch loop with the same batches.

python -m benchmarks.engine_overhead --out benchmarks/results/engine_overhead.json [--rounds 16] [--minutes 8] [--quick]

One rank; the event log, meters and the MLflow follower are on. Three trainings take turns: each a process of its own,
frozen while the others run.
"""

from __future__ import annotations

import sys

from benchmarks.training_rounds import Variant, measure_and_write, parser_of, sample_setting

WANTED = 0.97
VARIANTS = (
    Variant(name="bare PyTorch loop", loop="bare"),
    Variant(name="Trainer.fit, ZeRO 0", loop="ours", settings=("zero.stage=0",)),
    Variant(name="Trainer.fit, ZeRO 1", loop="ours", settings=("zero.stage=1",)),
)


def main(arguments: list[str]) -> int:
    """Writes one row per loop."""
    setting = sample_setting(global_batch=256, turn=12, warmup=8)
    return measure_and_write(
        parser_of(__doc__, rounds=16).parse_args(arguments),
        VARIANTS,
        setting,
        note=lambda rows, medians: (
            f"The same loader, batches, model (residual_vit, 0.56 M parameters), objective, AdamW and schedule; one "
            f"rank, batches of {setting.global_batch}; log, meters and MLflow's follower on. {medians} Wanted are "
            f"{WANTED} of the bare loop: {', '.join(format(row['ratio'], '.3f') for row in rows[1:])}."
        ),
        libraries=("torch", "deepspeed", "mlflow", "timm"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
