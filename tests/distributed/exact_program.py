"""Ranks of test_exact: losses of each ZeRO stage on all ranks, printed by rank 0 as JSON; batch norm stays equal."""

from __future__ import annotations

import json
import sys

import timm
import torch

from engine.world import close_world, init_world
from engine.zero import build_engine
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config, tiny_engine

NUM_STEPS = 20


def main() -> None:
    world = init_world()
    loader, objective = MemoryLoader(world), Supervised()
    losses: dict[str, list[float]] = {}
    for stage in (0, 1, 2, 3):
        for accumulation in (1, 4):
            config = tiny_config(stage=stage, world_size=world.size, accumulation=accumulation, ema=None)
            engine = tiny_engine(config, world, drop_path=0.0)
            series = losses.setdefault(f"stage {stage}, accumulation {accumulation}", [])
            for step in range(NUM_STEPS):
                parts = loader.batch(step).split(engine.micro_batch)
                total = torch.zeros(())
                for index, part in enumerate(parts):
                    loss = objective(engine.model, part).total
                    engine.accumulate(loss, last=index == accumulation - 1)
                    total += loss.detach()
                engine.step(step, learning_rate=1e-2)
                series.append(float(world.sum(total)) / world.size / accumulation)
    config = tiny_config(stage=2, world_size=world.size)
    torch.manual_seed(0)
    engine = build_engine(timm.create_model("resnet10t", num_classes=10), config, world)
    for step in range(3):
        engine.accumulate(objective(engine.model, loader.batch(step)).total, last=True)
        engine.step(step, learning_rate=1e-2)
    sums = [
        float(t.double().sum())
        for t in (*engine.module.state_dict().values(), *engine.release_weights().values())
    ]
    assert world.gather(sums) == [sums] * world.size
    if world.is_main:
        print(json.dumps(losses))
    close_world()


if __name__ == "__main__":
    sys.exit(main())
