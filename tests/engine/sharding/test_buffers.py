"""Running statistics that stay finite; that ranks agree on them is tested with real ranks."""

from __future__ import annotations

import torch
from torch import nn

from engine.sharding.buffers import BufferSync
from engine.world import World


def test_statistics_that_are_not_finite_are_taken_back(world: World) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    sync = BufferSync(model, world)
    model(torch.randn(8, 2) + 3.0)
    sync.step()
    good = model[0].running_mean.clone()
    assert good.abs().sum() > 0
    model(torch.full((8, 2), float("nan")))
    sync.step()
    assert torch.equal(model[0].running_mean, good)


def test_a_model_without_batch_norm_needs_nothing(world: World) -> None:
    BufferSync(nn.LayerNorm(2), world).step()
