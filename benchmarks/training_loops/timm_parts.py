"""python -m benchmarks.training_loops.timm_parts RECIPE [key=value ...] --out DIR: the same training of timm's parts.

timm's train script is not in its package. This is its loop, from the package's own parts in the script's order: reader
of webdataset shards, transforms, prefetching loader, task, optimizer, clipping, schedule, a log line every ten steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter, dispatch_clip_grad

from benchmarks.training_loops.clock import StepClock
from configs.load import load_config
from data_pipeline.joined import open_training
from engine.command import parse_command
from engine.timetable import Timetable
from engine.world import close_world, init_world
from pretrain.config import PretrainConfig
from pretrain.run import build_task


def main(arguments: list[str]) -> int:
    """Trains for the steps of the recipe, on one process."""
    command = parse_command("pretrain", arguments)
    config = load_config(PretrainConfig, command.recipe, command.overrides).config
    data, train, world = config.data, config.train, init_world()
    torch.manual_seed(train.seed)
    index = open_training(data)
    timetable = Timetable.of(config, steps_per_epoch=index.num_samples // train.global_batch)
    model, _ = build_task(config, num_classes=len(index.classes))
    task = ClassificationTask(
        model, criterion_kwargs={"smoothing": train.label_smoothing}, device=world.device
    )
    task.train()
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        betas=config.optim.betas,
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=1,
        updates_per_epoch=timetable.total_steps,
        warmup_epochs=0,
        step_on_epochs=False,
    )
    dataset = create_dataset(
        "wds/", root=str(Path(data.train)), split=index.split, is_training=True, batch_size=train.global_batch
    )
    loader = create_loader(
        dataset,
        input_size=(data.channels, data.image_size, data.image_size),
        batch_size=train.global_batch,
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
    clock, losses = StepClock(), AverageMeter()
    step = 0
    while step < timetable.total_steps:
        for images, targets in loader:
            clock.tick()
            loss = task(images, targets)["loss"]
            loss.backward()
            if config.optim.clip_grad is not None:
                dispatch_clip_grad(model.parameters(), config.optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            scheduler.step_update(num_updates=step)
            if step % train.log_every == 0:
                losses.update(loss.item(), len(images))
                sys.stderr.write(f"step {step} loss {losses.val:.4f} ({losses.avg:.4f})\n")
            if step == timetable.total_steps:
                break
    clock.write(command.out)
    close_world()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
