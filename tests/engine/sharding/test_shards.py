"""Which part of a tensor is whose, without ZeRO; DeepSpeed's own cuts are tested with real ranks in test_elastic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.sharding.shards import shards_of
from engine.world import World


def rank(number: int, size: int) -> World:
    return World(rank=number, size=size, local_rank=number, device=torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9])
def test_the_ranks_parts_laid_end_to_end_are_the_tensor(size: int) -> None:
    layer = nn.Linear(8, 1, bias=False)
    parts = [shard.master() for number in range(size) for shard in shards_of(layer, rank(number, size))]
    assert torch.equal(torch.cat(parts), layer.weight.detach().view(-1))
    assert max(part.numel() for part in parts) == -(-8 // size)


def test_a_parameter_that_layers_share_is_one_shard_with_two_names() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    (shard,) = shards_of(model, rank(0, 2))
    assert shard.names == ("0.weight", "1.weight")


def test_buffers_and_frozen_parameters_are_whole_on_every_rank() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    model[0].requires_grad_(False)
    shards = {shard.name: shard for shard in shards_of(model, rank(1, 2))}
    assert set(shards) == {"0.weight", "0.bias", "1.running_mean", "1.running_var"}
    assert all(not shard.divided and shard.size == shard.shape.numel() for shard in shards.values())
    assert [name for name, shard in shards.items() if shard.frozen] == ["0.weight", "0.bias"]


def test_half_precision_is_kept_in_float32(world: World) -> None:
    model = nn.BatchNorm1d(2, affine=False).half()
    assert all(shard.master().dtype == torch.float32 for shard in shards_of(model, world))
