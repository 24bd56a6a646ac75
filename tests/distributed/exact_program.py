"""Ranks of test_exact: losses of every case on all ranks, printed by rank 0 as one line of JSON.

Every ZeRO stage and accumulation on a ViT and a Swin; on two ranks also what else must not change a loss: optimizers,
offloading, precision, recomputed activations, compiled code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import timm
import torch
from torch import nn

from configs.training import RunConfig
from engine.sharding.zero import Engine, build_engine
from engine.world import World, close_world, init_world
from tests.support.tiny_run import SIZE, MemoryLoader, Supervised, tiny_config, tiny_model

LEARNING_RATES = {"adamw": 1e-3, "lion": 1e-4, "lamb": 1e-2, "muon": 1e-3}


def tiny_vit() -> nn.Module:
    return tiny_model(drop_path=0.0, depth=1)


def tiny_swin() -> nn.Module:
    """A block with plain and one with shifted windows."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=SIZE,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(2,),
        num_heads=(2,),
        num_classes=10,
        drop_path_rate=0.0,
    )
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {"vit": tiny_vit, "swin": tiny_swin}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train, and how it is called in the output."""

    name: str
    model: str = "vit"
    num_steps: int = 50
    stage: int = 2
    accumulation: int = 1
    optimizer: str = "adamw"
    offload: str = "none"
    train: dict[str, Any] = field(default_factory=dict)

    def config(self, world: World) -> RunConfig:
        plain = tiny_config(
            stage=self.stage, world_size=world.size, accumulation=self.accumulation, ema=None, **self.train
        )
        sections = plain.model_dump()
        sections["optim"]["name"] = self.optimizer
        sections["optim"]["clip_grad"] = None if self.optimizer == "muon" else 1.0
        sections["zero"]["offload"] = self.offload
        if self.stage == 3:  # else DeepSpeed keeps all that is so small whole
            sections["zero"]["extra"] = {"zero_optimization": {"stage3_param_persistence_threshold": 500}}
        return RunConfig.model_validate(sections)


def cases(world_size: int) -> list[Case]:
    """All ways to train on so many ranks."""
    return [*_matrix(), *(_rest() if world_size == 2 else [])]


def _matrix() -> list[Case]:
    return [
        Case(
            name=f"{model}, stage {stage}, accumulation {accumulation}",
            model=model,
            stage=stage,
            accumulation=accumulation,
        )
        for model in MODELS
        for stage in (0, 1, 2, 3)
        for accumulation in (1, 4)
    ]


def _rest() -> list[Case]:
    stages = (0, 1, 2, 3)
    recompute = {"activation_checkpointing": True}
    rest = [Case(name="compiled, stage 2", train={"compile": True})]
    rest += [
        Case(name=f"{what} offloaded, stage {stage}", stage=stage, offload=what, accumulation=2)
        for stage, what in [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
    ]
    rest += [
        Case(name=f"{model} recomputed, stage {stage}", model=model, stage=stage, train=recompute)
        for model, stage in [("vit", 0), ("vit", 2), ("swin", 3)]
    ]
    rest += [
        Case(name=f"{optimizer}, stage {stage}", stage=stage, optimizer=optimizer)
        for optimizer, stage in [*product(("lion", "muon"), stages), ("lamb", 0)]
    ]
    rest += [
        Case(name=f"muon offloaded, stage {stage}", stage=stage, optimizer="muon", offload="optimizer")
        for stage in (2, 3)
    ]
    # Last: DeepSpeed remembers for the whole process that there was autocast.
    rest += [Case(name=f"bf16, stage {stage}", stage=stage, train={"precision": "bf16"}) for stage in stages]
    rest += [
        Case(name=f"fp16, stage {stage}", stage=stage, train={"precision": "fp16", "loss_scale_power": 10})
        for stage in stages
    ]
    return [replace(case, num_steps=10) for case in rest]


def train(case: Case, world: World) -> tuple[list[float], Engine]:
    """Loss of the global batch at every step of this way to train."""
    loader, objective = MemoryLoader(world), Supervised()
    engine = build_engine(MODELS[case.model](), case.config(world), world)
    losses = []
    for step in range(case.num_steps):
        parts = loader.batch(step).split(engine.micro_batch)
        assert len(parts) == case.accumulation
        total = torch.zeros(())
        for index, part in enumerate(parts):
            loss = objective(engine.model, part).total
            engine.accumulate(loss, last=index == case.accumulation - 1)
            total += loss.detach()
        engine.step(step, learning_rate=LEARNING_RATES[case.optimizer])
        losses.append(float(world.sum(total)) / world.size / case.accumulation)
    return losses, engine


def check_batch_norm_stays_equal(world: World) -> None:
    torch.manual_seed(0)
    engine = build_engine(
        timm.create_model("resnet10t", num_classes=10), tiny_config(world_size=world.size), world
    )
    loader, objective = MemoryLoader(world), Supervised()
    for step in range(3):
        engine.accumulate(objective(engine.model, loader.batch(step)).total, last=True)
        engine.step(step, learning_rate=1e-2)
    tensors = (*engine.module.state_dict().values(), *engine.release_weights().values())
    sums = [float(tensor.double().sum()) for tensor in tensors]
    assert world.gather(sums) == [sums] * world.size


def check_fp16_finds_its_scale(world: World, stage: int) -> None:
    """Too large a scale skips steps on all ranks, changes nothing in them, and is halved until a step is good."""
    train = {"precision": "fp16", "loss_scale_power": 26}
    case = Case(name="fp16 from too large a scale", stage=stage, train=train)
    engine = build_engine(MODELS["vit"](), case.config(world), world)
    loader, objective = MemoryLoader(world), Supervised()
    losses = []
    for step in range(24):
        loss = objective(engine.model, loader.batch(0)).total
        losses.append(float(world.sum(loss.detach())))
        engine.accumulate(loss, last=True)
        engine.step(step, learning_rate=1e-3)
    skipped, scale = engine.health().skipped, engine.state_dict()["loss_scale"]
    assert 1 <= skipped < 24 and losses[: skipped + 1] == [losses[0]] * (skipped + 1), (skipped, losses)
    assert losses[-1] < losses[skipped], losses
    assert scale == {"factor": 2.0 ** (26 - skipped), "good_steps": 24 - skipped}, scale
    assert 0.1 < engine.health().grad_norm < 100  # in the unit of the unscaled loss
    engine.load_state_dict(engine.state_dict())


def main() -> None:
    world = init_world()
    losses = {}
    if world.size == 2:
        check_batch_norm_stays_equal(world)
    for case in cases(world.size):
        # DeepSpeed compiles Muon's update, which takes a minute on a CPU.
        torch.compiler.set_stance("force_eager" if case.optimizer == "muon" else "default")
        names = list(MODELS[case.model]().state_dict())
        losses[case.name], engine = train(case, world)
        assert list(engine.module.state_dict()) == names, case.name
    if world.size == 2:
        for stage in (0, 2):
            check_fp16_finds_its_scale(world, stage)
    if world.is_main:
        print(json.dumps(losses))
    close_world()


if __name__ == "__main__":
    main()
