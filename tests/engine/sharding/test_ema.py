"""The average of a model's weights; with DeepSpeed's own shards in test_zero and, over ranks, in test_elastic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import CheckpointError
from engine.saving.writer import FileQueue
from engine.sharding.ema import Ema
from engine.sharding.shards import shards_of
from engine.world import World


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def rank(number: int, size: int) -> World:
    """A rank that issues no collective."""
    return World(rank=number, size=size, local_rank=number, device=torch.device("cpu"))


def ema_of(model: nn.Module, world: World) -> Ema:
    return Ema(shards_of(model, world), world, decay=0.9)


def save(ema: Ema, folder: Path) -> None:
    files = FileQueue()
    ema.save(folder, files)
    files.write_all()


def test_the_average_is_the_recursion_written_out(world: World) -> None:
    model = small()
    ema, expected = ema_of(model, world), model[0].weight.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 3))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    assert ema.parts["0.weight"].view(4, 3).double() == pytest.approx(expected, abs=1e-5)


def test_running_statistics_are_averaged_but_no_counters_and_nothing_frozen(world: World) -> None:
    model = small()
    model[2].requires_grad_(False)
    names = set(ema_of(model, world).parts)
    assert {"1.running_mean", "1.running_var"} <= names
    assert not names & {"1.num_batches_tracked", "2.weight", "2.bias"}


def test_the_model_takes_the_average_and_then_its_own_weights_again_bit_for_bit(world: World) -> None:
    model = small()
    ema = ema_of(model, world)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = ema.exchange(ema.average)
    assert torch.equal(model[0].weight.view(-1), ema.parts["0.weight"])
    assert not torch.equal(model[0].weight, own["0.weight"])
    ema.exchange(kept)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_an_average_of_three_ranks_is_read_by_any_number_of_ranks(size: int, tmp_path: Path) -> None:
    model = small()
    before = [ema_of(model, rank(number, 3)) for number in range(3)]
    for ema in before:
        save(ema, tmp_path)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = [ema_of(model, rank(number, size)) for number in range(size)]
    for ema in after:
        ema.load(tmp_path)
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert torch.equal(torch.cat([ema.parts[name] for ema in after]), whole[name].view(-1)), name
    assert all(torch.equal(ema.parts["1.running_var"], whole["1.running_var"]) for ema in after)


def test_each_rank_keeps_its_share_of_the_weights(world: World) -> None:
    model = nn.Linear(64, 64)
    kept = [ema_of(model, rank(number, 4)).average for number in range(4)]
    assert [sum(part.numel() for part in parts) for parts in kept] == [(64 * 64 + 64) // 4] * 4


def test_the_average_of_a_smaller_model_is_refused_by_name(world: World, tmp_path: Path) -> None:
    save(ema_of(nn.Sequential(nn.Linear(3, 4)), world), tmp_path)
    with pytest.raises(CheckpointError, match=r"'1.weight' is missing"):
        ema_of(small(), world).load(tmp_path)
