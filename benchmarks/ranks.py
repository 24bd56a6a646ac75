"""Measures two ranks: DeepSpeed at ZeRO 0 to 3 through Trainer.fit against DistributedDataParallel in a bare loop.

python -m benchmarks.ranks --out benchmarks/results/ranks.json [--rounds 10] [--minutes 8] [--quick]

Both over gloo on the same machine, a core each: it compares what they do around the communication, not a network.
"""

from __future__ import annotations

import sys

from benchmarks.training_rounds import Variant, measure_and_write, parser_of, sample_setting

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
    setting = sample_setting(global_batch=192, turn=10, warmup=3)
    return measure_and_write(
        parser_of(__doc__, rounds=10).parse_args(arguments),
        VARIANTS,
        setting,
        note=lambda _rows, medians: (
            f"{RANKS} ranks of one core over gloo, global batches of {setting.global_batch}; the same loader, model "
            f"(residual_vit, 0.56 M parameters), objective and AdamW. {medians}"
        ),
        libraries=("torch", "deepspeed", "timm"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
