"""A real training run small enough for a test: a tiny ViT (or ResNet) on fixed random images through Trainer.fit.

``python tests/support/tiny_run.py OUT [--stage 2] [--steps 12] ...`` as any number of ranks; tests also import it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from configs.data import AugmentConfig, DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, ScheduleConfig, TrainConfig, ZeroConfig
from data_pipeline.batch import Batch, normalize
from data_pipeline.mix import Mix, draw_mix, mix_images
from engine.events import EventLog, read_events
from engine.journal import Journal
from engine.meters import Meter
from engine.objective import Loss, Objective
from engine.progress import Progress
from engine.results.evaluate import Evaluator
from engine.run_folder import RunFolder, open_run_folder
from engine.saving.checkpoint import CheckpointStore
from engine.sharding.zero import Engine, build_engine
from engine.survival.lifeline import Lifeline
from engine.survival.preempt import StopSignal
from engine.survival.rollback import Rollback
from engine.survival.safeguards import Safeguards
from engine.survival.watchdog import Watchdog
from engine.timetable import Timetable
from engine.trainer import Outcome, Trainer, seed_ranks
from engine.world import World, close_world, init_world
from models.losses import task_loss

MEAN = STD = (0.5, 0.5, 0.5)
NUM_IMAGES, SIZE, GLOBAL_BATCH = 96, 16, 16


class MemoryLoader:
    """A loader of random images held in memory, with the interface of ShardLoader."""

    batches_per_epoch = NUM_IMAGES // GLOBAL_BATCH

    def __init__(self, world: World, augment: AugmentConfig | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randint(
            0, 256, (NUM_IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8
        )
        self._targets = torch.randint(0, 10, (NUM_IMAGES,), generator=generator)
        self._world = world
        self._augment = augment or AugmentConfig()
        self._step = 0

    def batch(self, step: int) -> Batch:
        """This rank's share of global batch `step`."""
        order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(step))
        ids = order[:GLOBAL_BATCH].chunk(self._world.size)[self._world.rank]
        epochs = torch.full_like(ids, step // self.batches_per_epoch)
        return Batch(
            images=self._images[ids],
            targets=self._targets[ids],
            sample_ids=ids,
            epochs=epochs,
            copies=torch.zeros_like(ids),
            weights=torch.ones(len(ids)),
            mix=self._mix(ids, epochs) if self._augment.mixes else None,
        )

    def _mix(self, ids: Tensor, epochs: Tensor) -> Mix:
        numbers = {
            "sample_ids": ids.numpy(),
            "epochs": epochs.numpy(),
            "copies": torch.zeros_like(ids).numpy(),
        }
        return draw_mix(self._augment, size=SIZE, seed=0, **numbers)

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


class Without(MemoryLoader):
    """The loader of a run that never had batches 5, 6 and 7."""

    def batch(self, step: int) -> Batch:
        return super().batch(step + 3 if 5 <= step < 1000 else step)  # those of the evaluation stay


class Supervised:
    """Cross entropy; `before` is called with the number of the micro-batch, to let something happen in mid-run."""

    def __init__(self, before: Callable[[int], float] = lambda call: 1.0) -> None:
        self._before = before
        self._calls = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        scale = self._before(self._calls)
        self._calls += 1
        logits = model(mix_images(normalize(batch.images, MEAN, STD), batch.mix)).float()
        loss = task_loss(logits, batch.targets, label_shares=batch.label_shares)
        return Loss(total=loss * scale, parts={"task": loss})


class Poisoned(Supervised):
    """The loss of some global batches is not finite, whenever they come; after so many calls all goes dark."""

    def __init__(self, world: World, *batch_indices: int, fail_at_call: int | None = None) -> None:
        super().__init__()
        loader = MemoryLoader(world)
        self._bad = {tuple(loader.batch(index).sample_ids.tolist()) for index in batch_indices}
        self._fail_at_call = fail_at_call

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if self._calls == self._fail_at_call:
            raise RuntimeError("the power went out")
        loss = super().__call__(model, batch)
        if tuple(batch.sample_ids.tolist()) not in self._bad:
            return loss
        return Loss(total=loss.total * math.nan, parts=loss.parts)


def tiny_config(
    *,
    stage: int = 2,
    steps: int = 12,
    world_size: int = 2,
    accumulation: int = 1,
    augment: AugmentConfig | None = None,
    **changes: Any,
) -> RunConfig:
    """A config of few steps that logs each of them."""
    train = {
        "duration": f"{steps} steps",
        "global_batch": GLOBAL_BATCH,
        "micro_batch": GLOBAL_BATCH // world_size // accumulation,
        "ema": 0.9,
        "evaluate_every": "5 steps",
        "checkpoint_every": "4 steps",
        "log_every": 1,
    }
    return RunConfig(
        data=DataConfig(train="memory", image_size=SIZE, augment=augment or AugmentConfig()),
        model=ModelConfig(name="vit_tiny_patch16_224"),
        optim=OptimConfig(lr=1e-2),
        schedule=ScheduleConfig.model_validate({"warmup": "2 steps"}),
        zero=ZeroConfig.model_validate({"stage": stage}),
        train=TrainConfig.model_validate({**train, **changes}),
    )


def tiny_model(*, drop_path: float = 0.2, depth: int = 2) -> nn.Module:
    """A few blocks of width 24, the same weights each time."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=24,
        depth=depth,
        num_heads=2,
        num_classes=10,
        drop_path_rate=drop_path,
    )
    return model


def tiny_engine(config: RunConfig, world: World, *, drop_path: float = 0.2) -> Engine:
    """The tiny model in a real DeepSpeed engine."""
    return build_engine(tiny_model(drop_path=drop_path), config, world)


def tiny_trainer(
    out: Path,
    config: RunConfig,
    world: World,
    engine: Engine,
    objective: Objective,
    *,
    stop: StopSignal,
    lifeline: Lifeline,
    quiet: bool = True,
    follow: Callable[[int], None] = lambda step: None,
) -> Trainer:
    """A trainer over everything tiny, in a real run folder."""
    folder = open_run_folder(out, config, world)
    loader = MemoryLoader(world, config.data.augment)
    return Trainer(
        engine=engine,
        objective=objective,
        loader=loader,
        timetable=Timetable.of(config, steps_per_epoch=loader.batches_per_epoch),
        checkpoints=CheckpointStore(folder.checkpoints, world, keep=2, run_digest=folder.digest),
        journal=Journal(
            events=EventLog(folder.events if world.is_main else None),
            progress=Progress("tiny", quiet=quiet or not world.is_main),
            meter=Meter(world, global_batch=GLOBAL_BATCH, gathers_in_forward=engine.stage == 3),
        ),
        safeguards=tiny_safeguards(folder, config, world, lifeline),
        evaluator=Evaluator(
            batches=stop.between([loader.batch(1000), loader.batch(1001)], world),
            mean=MEAN,
            std=STD,
            world=world,
            scores_raw=config.train.evaluate_raw,
        ),
        follow=follow,
    )


def tiny_safeguards(folder: RunFolder, config: RunConfig, world: World, lifeline: Lifeline) -> Safeguards:
    """As a session makes them; sample 7 is called image-7."""
    train = config.train
    return Safeguards(
        watchdog=Watchdog(lifeline, timeout_s=train.watchdog_s, stacks=folder.stacks(world.rank)),
        rollback=Rollback(
            folder.skipped_windows,
            world,
            max_nonfinite=train.max_nonfinite,
            max_rollbacks=train.max_rollbacks,
            name_samples=lambda ids: [("memory", f"image-{sample_id}") for sample_id in ids.tolist()],
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
    out: Path, config: RunConfig, world: World, objective: Objective, *, drop_path: float = 0.2
) -> tuple[Outcome, dict[str, Any]]:
    """Builds an engine, trains or resumes, and gives back how it ended and the released weights."""
    engine = tiny_engine(config, world, drop_path=drop_path)
    seed_ranks(config.train.seed, world.rank)
    with StopSignal() as stop, Lifeline(world) as lifeline:
        trainer = tiny_trainer(
            out, config, world, engine, objective, stop=stop, lifeline=lifeline, quiet=False
        )
        outcome = trainer.fit(stop)
    return outcome, engine.release_weights()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--hang-at", type=int, help="does not come further than this step, so as to be killed"
    )
    given = parser.parse_args()
    world = init_world()
    config = tiny_config(stage=given.stage, steps=given.steps, world_size=world.size)

    def hang(step: int) -> float:
        if step == given.hang_at:
            time.sleep(3600)
        return 1.0

    outcome, weights = train_tiny(given.out, config, world, Supervised(hang))
    if world.is_main and outcome.stopped_by is None:
        torch.save(weights, given.out / "weights.pt")
    close_world()
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
