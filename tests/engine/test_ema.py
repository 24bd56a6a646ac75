"""The average of a model's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.ema import Ema


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_the_average_is_the_recursion_written_out() -> None:
    model = small()
    ema, expected = Ema(model, decay=0.9), model[0].weight.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 3))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    assert ema.state_dict()["0.weight"].double() == pytest.approx(expected, abs=1e-5)


def test_running_statistics_are_averaged_and_counters_are_not() -> None:
    names = set(Ema(small(), decay=0.9).state_dict())
    assert "1.running_mean" in names and "1.running_var" in names
    assert "1.num_batches_tracked" not in names


def test_the_model_has_the_average_within_and_its_own_weights_bit_for_bit_after() -> None:
    model = small()
    ema = Ema(model, decay=0.9)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    own = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="evaluation failed"), ema.applied():
        assert torch.equal(model[0].weight, ema.state_dict()["0.weight"])
        assert not torch.equal(model[0].weight, own)
        raise RuntimeError("evaluation failed")
    assert torch.equal(model[0].weight, own)


def test_a_saved_average_goes_on_where_it_was() -> None:
    model = small()
    first, second = Ema(model, decay=0.9), Ema(model, decay=0.9)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    first.update(0)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    first.update(1)
    second.update(1)
    assert torch.equal(first.state_dict()["0.weight"], second.state_dict()["0.weight"])
