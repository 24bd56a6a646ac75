"""python -m benchmarks.training_loops.timm_parts RECIPE [key=value ...] --out DIR: the same training of timm's parts.

timm's train script is not in its package. This does what the script does (train.py at commit aa4b5850, 2026-08-08, with
``--dataset wds/ --opt adamw --sched-on-updates`` and all that bears on speed at its default: no channels-last, no
accumulation, PyTorch's own choice of AdamW's kernel), from the package's parts and in the script's order. Beside it
stand the recipe's values for what both trainings must share: model, batch, crops, workers, no colour jitter, no label
smoothing, bilinear resizing, clipping.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.task import ClassificationTask
from timm.utils import AverageMeter, dispatch_clip_grad, random_seed, setup_default_logging
from torch.optim import Optimizer

from benchmarks.training_loops.clock import StepClock
from configs.load import load_config
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from engine.command import parse_command
from engine.timetable import Timetable
from engine.world import World, close_world, init_world
from pretrain.config import PretrainConfig

log = logging.getLogger("train")

_LOG_EVERY = 50
"""Steps between two lines, the script's default."""


def main(arguments: list[str]) -> int:
    """Trains for the steps of the recipe, on one process."""
    command = parse_command("pretrain", arguments)
    config = load_config(PretrainConfig, command.recipe, command.overrides).config
    setup_default_logging()
    world = init_world()
    random_seed(config.train.seed, world.rank)
    index = open_training(config.data)
    timetable = Timetable.of(config, steps_per_epoch=index.num_samples // config.train.global_batch)
    task = _task(config, world, num_classes=len(index.classes))
    optimizer, schedule = _optimizer(config, task, num_steps=timetable.total_steps)
    clock = StepClock()
    training = _Training(task, optimizer, schedule, clip_grad=config.optim.clip_grad, clock=clock)
    loader = _loader(config, index, world)
    while training.num_steps < timetable.total_steps:
        training.train_epoch(loader, until=timetable.total_steps)
    clock.write(command.out)
    close_world()
    return 0


class _Training:
    """The script's loop over one epoch, less what its defaults leave out."""

    def __init__(
        self,
        task: ClassificationTask,
        optimizer: Optimizer,
        schedule: Scheduler,
        *,
        clip_grad: float | None,
        clock: StepClock,
    ) -> None:
        self.num_steps = 0
        self._task = task
        self._optimizer = optimizer
        self._schedule = schedule
        self._clip_grad = clip_grad
        self._clock = clock

    def train_epoch(self, loader: PrefetchLoader, *, until: int) -> None:
        """Trains on all batches, or as many as are left; the loss is read after each, as the script does."""
        self._task.get_trainable_module().train()
        losses, step_s, wait_s = AverageMeter(), AverageMeter(), AverageMeter()
        ended = waiting = time.time()
        self._optimizer.zero_grad()
        for index, (images, targets) in enumerate(loader):
            self._clock.tick()
            wait_s.update(time.time() - waiting)
            losses.update(self._step(images, targets), len(images))
            self.num_steps += 1
            self._optimizer.zero_grad()
            step_s.update(time.time() - ended)
            ended = time.time()
            if index % _LOG_EVERY == 0:
                self._log(losses, step_s, wait_s, num_images=len(images))
            self._schedule.step_update(num_updates=self.num_steps, metric=losses.avg)
            if self.num_steps == until:
                return
            waiting = time.time()

    def _step(self, images: torch.Tensor, targets: torch.Tensor) -> float:
        loss = self._task(images, targets)["loss"]
        loss.backward()
        if self._clip_grad is not None:
            dispatch_clip_grad(self._task.get_clip_parameters(), value=self._clip_grad, mode="norm")
        self._optimizer.step()
        return float(loss.item())

    def _log(
        self, losses: AverageMeter, step_s: AverageMeter, wait_s: AverageMeter, *, num_images: int
    ) -> None:
        rates = [group["lr"] for group in self._optimizer.param_groups]
        log.info(
            f"step {self.num_steps}  loss {losses.val:.4f} ({losses.avg:.4f})  "
            f"{step_s.val:.3f} s ({step_s.avg:.3f} s), {num_images / step_s.val:.1f} images/s  "
            f"rate {sum(rates) / len(rates):.3e}  data {wait_s.val:.3f} s ({wait_s.avg:.3f} s)"
        )


def _task(config: PretrainConfig, world: World, *, num_classes: int) -> ClassificationTask:
    """timm's model and loss. NOTE: not by models.build, which gives attention another forward."""
    data = config.data
    model = timm.create_model(
        config.model.name,
        num_classes=num_classes,
        in_chans=data.channels,
        img_size=data.image_size,
        **config.model.args,
    )
    return ClassificationTask(
        model.to(world.device),
        criterion_kwargs={"smoothing": config.train.label_smoothing},
        device=world.device,
        verbose=False,
    )


def _optimizer(
    config: PretrainConfig, task: ClassificationTask, *, num_steps: int
) -> tuple[Optimizer, Scheduler]:
    optimizer = create_optimizer_v2(
        task.get_trainable_module(),
        opt="adamw",
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        betas=config.optim.betas,
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=1,
        updates_per_epoch=num_steps,
        warmup_epochs=0,
        step_on_epochs=False,
    )
    return optimizer, schedule


def _loader(config: PretrainConfig, index: ShardIndex, world: World) -> PrefetchLoader:
    data, batch = config.data, config.train.global_batch
    dataset = create_dataset(
        "wds/",
        root=str(Path(data.train)),
        split=index.split,
        is_training=True,
        batch_size=batch,
        seed=config.train.seed,
        input_img_mode="RGB" if data.channels == 3 else "L",
    )
    return create_loader(
        dataset,
        input_size=(data.channels, data.image_size, data.image_size),
        batch_size=batch,
        is_training=True,
        scale=data.augment.scale,
        ratio=data.augment.ratio,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=data.mean,
        std=data.std,
        num_workers=data.workers,
        device=world.device,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
