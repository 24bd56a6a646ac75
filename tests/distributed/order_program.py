"""A rank of test_order: consumes batches, writes down what was in them, and saves its position now and then.

python tests/distributed/order_program.py INDEX OUT STEPS WORKERS

It does no more steps than OUT/limit says, so that it is still running when it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from itertools import islice
from pathlib import Path

from configs.base import Duration
from configs.data import AugmentConfig, CorpusConfig, DataConfig, Moment, PhaseConfig, Weight
from data_pipeline.batch import Batch
from data_pipeline.joined import open_training
from data_pipeline.loader import ShardLoader
from data_pipeline.mix import mix_images

GLOBAL_BATCH = 16
SAVE_EVERY = 5


def make_loader(folder: Path, *, workers: int, rank: int = 0, world_size: int = 1) -> ShardLoader:
    """Training batches of two corpora: random crops, two copies of each image, mixed, and larger after 30 steps."""
    mixture = (CorpusConfig(train=str(folder / "second"), weight=Weight(30, "%")),)
    data = DataConfig(
        train=str(folder / "first"),
        mixture=mixture,
        image_size=16,
        progressive=(PhaseConfig(until=Moment.parse("50 %"), image_size=12),),
        repeats=2,
        augment=AugmentConfig(mixup=0.8, cutmix=1.0),
        workers=workers,
        prefetch=2,
    )
    return ShardLoader(
        open_training(data),
        data,
        global_batch=GLOBAL_BATCH,
        seed=11,
        duration=Duration(60, "steps"),
        rank=rank,
        world_size=world_size,
    )


def describe(batch: Batch) -> list[list[int]]:
    """Sample id of each image and checksum of its mixed pixels."""
    mixed = mix_images(batch.images.float(), batch.mix)
    pixels = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in mixed]
    return [list(pair) for pair in zip(batch.sample_ids.tolist(), pixels, strict=True)]


def main(folder: Path, out: Path, num_steps: int, workers: int) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    loader = make_loader(folder, workers=workers, rank=rank, world_size=world_size)
    position, step = out / "position.json", 0
    if position.exists():
        saved = json.loads(position.read_text())
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
    with open(out / f"{time.time_ns()}-{rank}-of-{world_size}.jsonl", "w", buffering=1) as record:
        for batch in islice(loader, num_steps - step):
            while step >= allowed_step(out):
                time.sleep(0.01)
            record.write(json.dumps([step, describe(batch)]) + "\n")
            loader.advance()
            step += 1
            if rank == 0 and step % SAVE_EVERY == 0:
                partial = position.with_suffix(".partial")
                partial.write_text(json.dumps({"step": step, "loader": loader.state_dict()}))
                partial.replace(position)


def allowed_step(out: Path) -> int:
    """How many steps may be done by now."""
    return int((out / "limit").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
