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


# A whole number of intervals is counted, and the saves within them.
SETTING = Setting(recipe="benchmarks/checkpoint_cost.yaml", global_batch=8, steps=172, skipped=20)


def main(arguments: list[str]) -> int:
    """Writes one row per run."""
    return measure_and_write(
        parser_of(__doc__, rounds=3).parse_args(arguments),
        VARIANTS,
        SETTING,
        note=lambda rows, medians: (
            "ViT-Ti with EMA at ZeRO 1, one rank; checkpoints are written in the background and made durable. "
            f"{medians} Wanted is {WANTED} of the run without: {rows[1]['ratio']:.3f}."
        ),
        libraries=("torch", "deepspeed"),
        quick_steps=(54, 2),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
