"""python -m benchmarks.training_loops.bare RECIPE [key=value ...] --out DIR: the same training as a plain PyTorch loop.

The same batches, model, objective, optimizer and schedule, and nothing else; more than one rank under DDP.
"""

from __future__ import annotations

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.training_loops.clock import StepClock
from configs.load import load_config
from data_pipeline.joined import open_training
from data_pipeline.loader import ShardLoader
from engine.command import parse_command
from engine.sharding.optim import parameter_groups, set_learning_rate
from engine.timetable import Timetable
from engine.world import close_world, init_world
from pretrain.config import PretrainConfig
from pretrain.run import build_task


def main(arguments: list[str]) -> int:
    """Trains for the steps of the recipe."""
    command = parse_command("pretrain", arguments)
    config = load_config(PretrainConfig, command.recipe, command.overrides).config
    train, world = config.train, init_world()
    torch.manual_seed(train.seed)
    index = open_training(config.data)
    loader = ShardLoader(
        index,
        config.data,
        global_batch=train.global_batch,
        seed=train.seed,
        rank=world.rank,
        world_size=world.size,
    )
    timetable = Timetable.of(config, steps_per_epoch=loader.batches_per_epoch)
    model, objective = build_task(config, num_classes=len(index.classes))
    model = model.to(world.device).train()
    groups = parameter_groups(model, config.optim)
    optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, fused=True)
    trained = DistributedDataParallel(model) if world.size > 1 else model
    clock, batches = StepClock(), iter(loader)
    for step in range(timetable.total_steps):
        batch = next(batches).to(world.device)
        clock.tick()
        objective(trained, batch).total.backward()
        if config.optim.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
        set_learning_rate(optimizer.param_groups, timetable.learning_rate(step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if world.is_main:
        clock.write(command.out)
    close_world()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
