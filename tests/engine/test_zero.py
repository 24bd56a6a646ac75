from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from configs.training import RunConfig
from engine.world import World
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config, tiny_engine, tiny_model


def plain_losses(
    config: RunConfig, world: World, *, steps: int, rate: float
) -> tuple[list[float], dict[str, Tensor]]:
    """The independent reference: a bare loop in PyTorch."""
    model, loader = tiny_model(drop_path=0.0), MemoryLoader(world)
    undecayed = [p for n, p in model.named_parameters() if p.ndim < 2 or n in ("pos_embed", "cls_token")]
    decayed = [p for p in model.parameters() if all(p is not q for q in undecayed)]
    groups = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=config.optim.weight_decay)
    losses = []
    for step in range(steps):
        loss = Supervised()(model, loader.batch(step)).total
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_trains_like_a_plain_loop(stage: int, accumulation: int, world: World) -> None:
    config = tiny_config(stage=stage, world_size=1, accumulation=accumulation, ema=None)
    expected, _ = plain_losses(config, world, steps=6, rate=1e-2)
    engine, loader, objective = tiny_engine(config, world, drop_path=0.0), MemoryLoader(world), Supervised()
    for step in range(6):
        losses = []
        for index, micro_batch in enumerate(loader.batch(step).split(engine.micro_batch)):
            loss = objective(engine.model, micro_batch).total
            engine.accumulate(loss, last=index == accumulation - 1)
            losses.append(loss.item())
        engine.step(step, learning_rate=1e-2)
        assert len(losses) == accumulation
        assert sum(losses) / accumulation == pytest.approx(expected[step], rel=1e-4), f"step {step}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    stage: int, precision: str, world: World
) -> None:
    config = tiny_config(stage=stage, world_size=1, precision=precision)
    engine, loader, objective = tiny_engine(config, world, drop_path=0.0), MemoryLoader(world), Supervised()
    weights: dict[str, Tensor] = {}
    for step in range(4):
        before = engine.release_weights() if config.train.ema is None else own_weights(engine.module)
        loss = objective(engine.model, loader.batch(step)).total
        engine.accumulate(loss * (float("nan") if step in (1, 2) else 1.0), last=True)
        engine.step(step, learning_rate=1e-2)
        weights = engine.release_weights() if config.train.ema is None else own_weights(engine.module)
        unchanged = all(torch.equal(before[name], weights[name]) for name in before)
        assert unchanged == (step in (1, 2)), f"step {step}"
        assert engine.health().skipped_in_a_row == {0: 0, 1: 1, 2: 2, 3: 0}[step]
    assert engine.health().skipped == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_gradient_norm_is_that_before_clipping(stage: int, world: World) -> None:
    config = tiny_config(stage=stage, world_size=1, ema=None)
    model, loader = tiny_model(drop_path=0.0), MemoryLoader(world)
    (Supervised()(model, loader.batch(0)).total * 100).backward()
    expected = float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    engine = tiny_engine(config, world, drop_path=0.0)
    engine.accumulate(Supervised()(engine.model, loader.batch(0)).total * 100, last=True)
    engine.step(0, learning_rate=1e-2)
    assert expected > 1.0
    assert engine.health().grad_norm == pytest.approx(expected, rel=1e-4)


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
