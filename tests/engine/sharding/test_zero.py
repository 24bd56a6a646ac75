"""One rank at each ZeRO stage; more ranks in tests/distributed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor, nn

from configs.base import ConfigError
from configs.training import RunConfig
from data_pipeline.batch import normalize
from engine.sharding.zero import Engine, build_engine
from engine.survival.preempt import Stopped
from engine.world import World
from tests.support.tiny_run import (
    MEAN,
    STD,
    MemoryLoader,
    Supervised,
    tiny_config,
    tiny_engine,
    tiny_model,
)


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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    stage: int, precision: str, world: World
) -> None:
    config = tiny_config(stage=stage, world_size=1, precision=precision, loss_scale_power=6, ema=None)
    engine, loader, objective = tiny_engine(config, world, drop_path=0.0), MemoryLoader(world), Supervised()
    weights: dict[str, Tensor] = {}
    for step in range(4):
        before = engine.release_weights()
        loss = objective(engine.model, loader.batch(step)).total
        engine.accumulate(loss * (float("nan") if step in (1, 2) else 1.0), last=True)
        engine.step(step, learning_rate=1e-2)
        weights = engine.release_weights()
        unchanged = all(torch.equal(before[name], weights[name]) for name in before)
        assert unchanged == (step in (1, 2)), f"step {step}"
        assert engine.health().skipped_in_a_row == {0: 0, 1: 1, 2: 2, 3: 0}[step]
    assert engine.health().skipped == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_average_is_that_of_the_weights_after_each_step(stage: int, precision: str, world: World) -> None:
    changes: dict[str, Any] = {"precision": precision, "loss_scale_power": 6}
    plain = tiny_engine(tiny_config(stage=stage, world_size=1, ema=None, **changes), world, drop_path=0.0)
    averaging = tiny_engine(tiny_config(stage=stage, world_size=1, ema=0.9, **changes), world, drop_path=0.0)
    loader = MemoryLoader(world)
    expected = plain.release_weights()
    for step in range(4):
        train_one(plain, loader, step)
        train_one(averaging, loader, step)
        decay = min(0.9, (1 + step) / (10 + step))
        weights = plain.release_weights()
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    torch.testing.assert_close(averaging.release_weights(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_evaluation_is_of_the_average_or_not_and_leaves_training_as_it_was(stage: int, world: World) -> None:
    configs = [tiny_config(stage=stage, world_size=1, ema=ema) for ema in (0.9, None)]
    engine, undisturbed = (tiny_engine(config, world, drop_path=0.0) for config in configs)
    assert engine.has_average and not undisturbed.has_average
    loader, reference = MemoryLoader(world), tiny_model(drop_path=0.0).eval()
    for step in range(4):
        losses = train_one(engine, loader, step), train_one(undisturbed, loader, step)
        assert losses[0] == losses[1], f"step {step}"
        reference.load_state_dict(engine.release_weights())
        images = normalize(loader.batch(9).images, MEAN, STD)
        with suppress(Stopped), engine.evaluation() as model, torch.no_grad():
            torch.testing.assert_close(model(images), reference(images))
            if step == 2:  # a signal in mid-evaluation
                raise Stopped
        found = []
        for trained in (engine, undisturbed):
            with trained.evaluation(raw=True) as model, torch.no_grad():
                found.append(model(images))
        assert torch.equal(*found)
        assert not torch.allclose(found[0], reference(images))


@pytest.mark.parametrize("stage", [2, 3])
def test_compiling_and_checkpointing_activations_change_neither_losses_nor_names(
    stage: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_engine(tiny_config(stage=stage, world_size=1), world)
    config = tiny_config(stage=stage, world_size=1, compile=True, activation_checkpointing=True)
    quick = partialmethod(DeepSpeedEngine.compile, backend="aot_eager")  # inductor takes half a minute
    monkeypatch.setattr(DeepSpeedEngine, "compile", quick)
    changed, loader = tiny_engine(config, world), MemoryLoader(world)
    for step in range(2):
        losses = []
        for engine in (plain, changed):
            torch.manual_seed(step)
            losses.append(train_one(engine, loader, step))
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert changed.release_weights().keys() == tiny_model().state_dict().keys()


def test_a_model_that_cannot_compute_activations_again_is_named(world: World) -> None:
    config = tiny_config(stage=0, world_size=1, activation_checkpointing=True)
    with pytest.raises(ConfigError, match="'vit_tiny_patch16_224' cannot do it"):
        build_engine(nn.Linear(2, 2), config, world)


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


def train_one(engine: Engine, loader: MemoryLoader, step: int) -> float:
    loss = Supervised()(engine.model, loader.batch(step)).total
    engine.accumulate(loss, last=True)
    engine.step(step, learning_rate=1e-2)
    return loss.item()


STARTS = """
import sys
from engine.world import init_world
from tests.support.tiny_run import tiny_config, tiny_engine
tiny_engine(tiny_config(stage=1, world_size=1, ema=None), init_world())
assert not {"mlflow", "pandas"} & sys.modules.keys()
import mlflow
"""


def test_a_rank_starts_without_what_deepspeed_would_import_for_its_autotuner() -> None:
    root = Path(__file__).resolve().parents[3]
    started = subprocess.run(
        [sys.executable, "-c", STARTS], cwd=root, capture_output=True, text=True, check=False
    )
    assert started.returncode == 0, started.stderr
