"""Measures a training from photographs in shards: Mirada against the parts of timm's train script.

python -m benchmarks.photographs CORPORA --only jpeg
python -m benchmarks.timm_train CORPORA/jpeg --out benchmarks/results/timm_train.json [--minutes 8] [--quick]

timm's script itself is not in its package: benchmarks/training_loops/timm_parts.py is its loop, made of timm's own
reader of webdataset shards, transforms, loader, task and optimizer. Same shards, model, crops, flips, batch, workers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.training_rounds import Setting, Variant, measure_and_write, parser_of

WANTED = 1.10
MODEL = "vit_tiny_patch16_224"
_SIZE, _WORKERS = 64, 2
VARIANTS = (
    Variant(name="timm's parts, as its train script joins them", loop="timm_parts"),
    Variant(name="mirada pretrain", loop="ours", settings=("zero.stage=1",)),
)


def main(arguments: list[str]) -> int:
    """Writes one row per program."""
    parser = parser_of(__doc__, rounds=12)
    parser.add_argument("corpus", type=Path, help="folder of indexed shards of photographs")
    given = parser.parse_args(arguments)
    setting = Setting(
        recipe="benchmarks/timm_train.yaml",
        global_batch=64,
        turn=20,
        warmup=4,
        settings=(
            f"data.train={given.corpus.resolve()}",
            f"data.image_size={_SIZE}",
            f"data.workers={_WORKERS}",
            f"model.name={MODEL}",
        ),
    )
    return measure_and_write(
        given,
        VARIANTS,
        setting,
        note=lambda rows, medians: (
            f"{MODEL} at {_SIZE}x{_SIZE} from photographs of 500x375 in the same shards (page cache warm), random "
            f"resized crop and flip, {_WORKERS} loader workers, batches of {setting.global_batch}, one rank. {medians} "
            f"Wanted is {WANTED} of timm's: {rows[1]['ratio']:.3f}; the smaller the model, the more the loader counts."
        ),
        libraries=("torch", "timm", "deepspeed", "webdataset"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
