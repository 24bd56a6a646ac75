"""A real training run small enough for a test: a tiny ViT (or ResNet) on fixed random images through Trainer.fit.

``python tests/support/tiny_run.py OUT [--stage 2] [--steps 12] ...`` as any number of ranks; tests also import it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from configs.data import DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, ScheduleConfig, TrainConfig, ZeroConfig
from data_pipeline.batch import Batch, normalize
from engine.checkpoint import CheckpointStore
from engine.evaluate import Evaluator
from engine.events import EventLog, read_events
from engine.objective import Loss
from engine.preempt import StopSignal
from engine.progress import Progress
from engine.run_folder import open_run_folder
from engine.timetable import Timetable
from engine.trainer import Outcome, Trainer
from engine.world import World, close_world, init_world
from engine.zero import Engine, build_engine

MEAN = STD = (0.5, 0.5, 0.5)
NUM_IMAGES, SIZE, GLOBAL_BATCH = 96, 16, 16


class MemoryLoader:
    """A loader of random images held in memory, with the interface of ShardLoader."""

    batches_per_epoch = NUM_IMAGES // GLOBAL_BATCH

    def __init__(self, world: World) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randint(
            0, 256, (NUM_IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8
        )
        self._targets = torch.randint(0, 10, (NUM_IMAGES,), generator=generator)
        self._world = world
        self._step = 0

    def batch(self, step: int) -> Batch:
        """This rank's share of global batch `step`."""
        order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(step))
        ids = order[:GLOBAL_BATCH].chunk(self._world.size)[self._world.rank]
        return Batch(
            images=self._images[ids], targets=self._targets[ids], sample_ids=ids, weights=torch.ones(len(ids))
        )

    def __iter__(self) -> Iterator[Batch]:
        step = self._step
        while True:
            yield self.batch(step)
            step += 1

    def advance(self) -> None:
        self._step += 1

    @property
    def passes(self) -> dict[str, float]:
        return {"memory": self._step / self.batches_per_epoch}

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._step = state["step"]


class Supervised:
    """Cross entropy; `before` is called with the number of the micro-batch, to let something happen in mid-run."""

    def __init__(self, before: Callable[[int], float] = lambda call: 1.0) -> None:
        self._before = before
        self._calls = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        scale = self._before(self._calls)
        self._calls += 1
        logits = model(normalize(batch.images, MEAN, STD)).float()
        loss = nn.functional.cross_entropy(logits, batch.targets)
        return Loss(total=loss * scale, parts={"task": loss})


def tiny_config(
    *, stage: int = 2, steps: int = 12, world_size: int = 2, accumulation: int = 1, **changes: Any
) -> RunConfig:
    """A config of few steps that logs each of them."""
    train = {
        "duration": f"{steps} steps",
        "global_batch": GLOBAL_BATCH,
        "micro_batch": GLOBAL_BATCH // world_size // accumulation,
        "ema": None if stage == 3 else 0.9,
        "evaluate_every": "5 steps",
        "checkpoint_every": "4 steps",
        "log_every": 1,
    }
    return RunConfig(
        data=DataConfig(train="memory", image_size=SIZE),
        model=ModelConfig(name="vit_tiny_patch16_224"),
        optim=OptimConfig(lr=1e-2),
        schedule=ScheduleConfig.model_validate({"warmup": "2 steps"}),
        zero=ZeroConfig.model_validate({"stage": stage}),
        train=TrainConfig.model_validate({**train, **changes}),
    )


def tiny_model(*, drop_path: float = 0.2) -> nn.Module:
    """Two blocks of width 24, the same weights each time."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=10,
        drop_path_rate=drop_path,
    )
    return model


def tiny_engine(config: RunConfig, world: World, *, drop_path: float = 0.2) -> Engine:
    """The tiny model in a real DeepSpeed engine."""
    return build_engine(tiny_model(drop_path=drop_path), config, world)


def tiny_trainer(
    out: Path, config: RunConfig, world: World, engine: Engine, objective: Supervised, *, quiet: bool = True
) -> Trainer:
    """A trainer over everything tiny, in a real run folder."""
    folder = open_run_folder(out, config, world)
    loader = MemoryLoader(world)
    return Trainer(
        engine=engine,
        objective=objective,
        loader=loader,
        timetable=Timetable.of(config, steps_per_epoch=loader.batches_per_epoch),
        checkpoints=CheckpointStore(folder.checkpoints, world, keep=2, run_digest=folder.digest),
        events=EventLog(folder.events if world.is_main else None),
        progress=Progress("tiny", quiet=quiet or not world.is_main),
        evaluator=Evaluator(
            batches=[loader.batch(1000), loader.batch(1001)], mean=MEAN, std=STD, world=world
        ),
    )


def history(out: Path) -> dict[tuple[str, int], tuple[float, ...]]:
    """What a run logged by kind and step, later words about a step replacing earlier ones; no timings."""
    kept: dict[tuple[str, int], tuple[float, ...]] = {}
    for event in read_events(out / "events.jsonl"):
        if event["kind"] in ("metrics", "evaluation"):
            values = {k: v for k, v in event["values"].items() if not k.startswith("perf/")}
            kept[event["kind"], event["step"]] = tuple(values[name] for name in sorted(values))
    return kept


def train_tiny(
    out: Path, config: RunConfig, world: World, objective: Supervised
) -> tuple[Outcome, dict[str, Any]]:
    """Builds an engine, trains or resumes, and gives back how it ended and the released weights."""
    engine = tiny_engine(config, world)
    trainer = tiny_trainer(out, config, world, engine, objective, quiet=False)
    with StopSignal() as stop:
        outcome = trainer.fit(stop)
    return outcome, engine.release_weights()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    world = init_world()
    config = tiny_config(stage=given.stage, steps=given.steps, world_size=world.size)
    outcome, weights = train_tiny(given.out, config, world, Supervised())
    if world.is_main and outcome.stopped_by is None:
        torch.save(weights, given.out / "weights.pt")
    close_world()
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
