"""Ranks of test_systems: losses of every attention system at every ZeRO stage, which rank 0 prints as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

from torch import nn

from configs.training import RunConfig
from engine.objective import Objective
from engine.penalized import Penalized
from engine.sharding.zero import build_engine
from engine.world import World, close_world, init_world
from models.progressive import AttentionSwitches, switched_layers
from models.supernet import PathSwitch
from tests.support.systems import ACTIVATION, SYSTEMS, build_system, system_config
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config

STAGES = (0, 1, 2, 3)
NUM_STEPS = 5
LEARNING_RATE = 1e-3


def config_at(stage: int, world: World) -> RunConfig:
    """No weight decay: which parameters have one is tested elsewhere."""
    sections = tiny_config(stage=stage, world_size=world.size, ema=None).model_dump()
    sections["optim"]["weight_decay"] = 0.0
    if stage == 3:  # else DeepSpeed keeps all that is so small whole
        sections["zero"]["extra"] = {"zero_optimization": {"stage3_param_persistence_threshold": 100}}
    return RunConfig.model_validate(sections)


def objective_of(name: str, network: nn.Module) -> Objective:
    """Cross entropy, with what the system adds to it."""
    penalties = system_config(name).attention.regularize
    return Penalized(Supervised(), network, penalties) if penalties else Supervised()


def follow_of(network: nn.Module) -> Callable[[int], None]:
    """What makes the layers of a step the active ones, where there is something to switch."""
    if switched_layers(network):
        return AttentionSwitches(network, ACTIVATION).follow
    return PathSwitch(network, seed=0).follow


def train(name: str, stage: int, world: World) -> list[float]:
    """Loss of the global batch at every step."""
    engine = build_engine(build_system(name), config_at(stage, world), world)
    loader, objective = MemoryLoader(world), objective_of(name, engine.module)
    follow = follow_of(engine.module)
    losses = []
    for step in range(NUM_STEPS):
        follow(step)
        loss = objective(engine.model, loader.batch(step)).total
        engine.accumulate(loss, last=True)
        engine.step(step, learning_rate=LEARNING_RATE)
        losses.append(float(world.sum(loss.detach())) / world.size)
    assert list(engine.module.state_dict()) == list(build_system(name).state_dict())
    return losses


def main() -> None:
    world = init_world()
    losses = {f"{name}, stage {stage}": train(name, stage, world) for name in SYSTEMS for stage in STAGES}
    if world.is_main:
        print(json.dumps(losses))
    close_world()


if __name__ == "__main__":
    main()
