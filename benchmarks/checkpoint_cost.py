"""Measures what checkpoints cost: the throughput of a run that saves every 50 steps against one that does not.

python -m benchmarks.checkpoint_cost --out benchmarks/results/checkpoint_cost.json [--rounds 8] [--minutes 8] [--quick]
"""

from __future__ import annotations

import sys

from benchmarks.training_rounds import Setting, Variant, measure_and_write, parser_of

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


# A turn is an interval between two saves: it has the stall of one and the background writing of the one before.
SETTING = Setting(recipe="benchmarks/checkpoint_cost.yaml", global_batch=8, turn=EVERY, warmup=2)


def main(arguments: list[str]) -> int:
    """Writes one row per run."""
    return measure_and_write(
        parser_of(__doc__, rounds=8).parse_args(arguments),
        VARIANTS,
        SETTING,
        note=lambda rows, medians: (
            "ViT-Ti with EMA at ZeRO 1, one rank; checkpoints are written in the background and made durable. "
            f"{medians} Wanted is {WANTED} of the run without: {rows[1]['ratio']:.3f}."
        ),
        libraries=("torch", "deepspeed"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
