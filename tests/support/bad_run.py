"""A training run on shards of which every tenth image is damaged: ``bad_run.py SHARDS OUT MAX_BAD_FRACTION``."""

from __future__ import annotations

import sys
from pathlib import Path

from configs.data import DataConfig
from configs.exit_code import run_main
from data_pipeline.index import open_index
from data_pipeline.loader import ShardLoader
from engine.events import EventLog
from engine.journal import Journal
from engine.meters import Meter
from engine.progress import Progress
from engine.run_folder import open_run_folder
from engine.saving.checkpoint import CheckpointStore
from engine.survival.bad_list import BadList
from engine.survival.lifeline import Lifeline
from engine.survival.preempt import StopSignal
from engine.timetable import Timetable
from engine.trainer import Trainer
from engine.world import close_world, init_world
from tests.support.shards import make_shards
from tests.support.tiny_run import (
    GLOBAL_BATCH,
    SIZE,
    Supervised,
    tiny_config,
    tiny_engine,
    tiny_safeguards,
)

NUM_SAMPLES = 160


def damaged_shards(folder: Path) -> None:
    """Shards of NUM_SAMPLES images, of which every tenth is none."""
    bad = dict.fromkeys(range(0, NUM_SAMPLES, 10), b"no image")
    make_shards(folder, [NUM_SAMPLES // 4] * 4, size=(20, 20), channels=3, bad=bad)


def main() -> int:
    shards, out, max_fraction = sys.argv[1:]
    world = init_world()
    data = DataConfig(train=shards, image_size=SIZE, workers=0, max_bad_fraction=float(max_fraction))
    loader = ShardLoader(
        open_index(shards), data, global_batch=GLOBAL_BATCH, seed=0, rank=world.rank, world_size=world.size
    )
    config = tiny_config(steps=10, log_every=2, checkpoint_every="5 steps")
    folder = open_run_folder(Path(out), config, world)
    path = folder.bad_samples if world.is_main else None
    journal = Journal(
        events=EventLog(folder.events if world.is_main else None),
        progress=Progress("tiny", quiet=True),
        meter=Meter(world, global_batch=GLOBAL_BATCH),
        bad_lists=[BadList(path, loader, max_fraction=data.max_bad_fraction)],
    )
    with StopSignal() as stop, Lifeline(world) as lifeline:
        trainer = Trainer(
            engine=tiny_engine(config, world),
            objective=Supervised(),
            loader=loader,
            timetable=Timetable.of(config, steps_per_epoch=loader.batches_per_epoch),
            checkpoints=CheckpointStore(folder.checkpoints, world, keep=2, run_digest=folder.digest),
            journal=journal,
            safeguards=tiny_safeguards(folder, config, world, lifeline),
        )
        outcome = trainer.fit(stop)
    close_world()
    return outcome.exit_code


if __name__ == "__main__":
    run_main(main)
