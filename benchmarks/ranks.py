"""Measures two ranks: DeepSpeed at ZeRO 0 to 3 through Trainer.fit against DistributedDataParallel in a bare loop.

python -m benchmarks.ranks --out benchmarks/results/ranks.json [--rounds 3] [--minutes 8] [--quick]

Both over gloo on the same machine, a core each: it compares what they do around the communication, not a network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_rounds import COLUMNS, Setting, Variant, measure_rounds, rows_of

RANKS = 2
VARIANTS = (
    Variant(name="DistributedDataParallel, bare loop", loop="bare", ranks=RANKS),
    *(
        Variant(
            name=f"Trainer.fit, ZeRO {stage}", loop="ours", settings=(f"zero.stage={stage}",), ranks=RANKS
        )
        for stage in range(4)
    ),
)


def main(arguments: list[str]) -> int:
    """Writes one row per way to train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to try it")
    given = parser.parse_args(arguments)
    setting = Setting(
        recipe="configs/pretrain/fashion_mnist_teacher.yaml",
        global_batch=192,
        steps=8 if given.quick else 45,
        skipped=3 if given.quick else 20,
        settings=(
            *("data.train=mirada://sample/train", "data.val=null", "train.ema=null"),
            *("schedule.warmup=2 steps", "train.checkpoint_every=1000 steps"),
        ),
    )
    found = measure_rounds(
        VARIANTS, setting, rounds=1 if given.quick else given.rounds, minutes=given.minutes
    )
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows_of(found, setting),
        note=(
            f"{RANKS} ranks of one core over gloo, global batches of {setting.global_batch}; the same loader, model "
            "(residual_vit, 0.56 M parameters), objective and AdamW. Medians over "
            f"{len(next(iter(found.values())))} interleaved rounds of {setting.steps - setting.skipped} steps."
        ),
        versions=installed_versions(["torch", "deepspeed", "timm"]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
