"""models.local_response: the formula of the AlexNet paper, by explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from configs.training import ModelConfig
from models.build import build_model
from models.local_response import LocalResponse


def by_the_paper(maps: NDArray[np.float64], *, n: int) -> NDArray[np.float64]:
    """Krizhevsky et al. 2012, section 3.3, with its constants k = 2, alpha = 1e-4, beta = 0.75."""
    out = np.empty_like(maps)
    channels = maps.shape[1]
    for i in range(channels):
        first, last = max(0, i - n // 2), min(channels - 1, i + n // 2)
        energy = sum(maps[:, j] ** 2 for j in range(first, last + 1))
        out[:, i] = maps[:, i] / (2.0 + 1e-4 * energy) ** 0.75
    return out


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("channels", [4, 5, 32])
def test_each_activation_is_divided_by_the_energy_of_its_neighbours(size: int, channels: int) -> None:
    maps = 100 * torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    found = LocalResponse(size=size)(maps)
    np.testing.assert_allclose(found.numpy(), by_the_paper(maps.double().numpy(), n=size), rtol=1e-5)


def test_the_sum_of_the_paper_is_not_the_mean_of_torch() -> None:
    maps = torch.full((1, 8, 1, 1), 100.0)
    ours, torchs = LocalResponse()(maps), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(maps)
    assert ours[0, 4].item() == pytest.approx(100 / (2 + 5) ** 0.75)
    assert torchs[0, 4].item() == pytest.approx(100 / (2 + 1) ** 0.75)


def test_its_gradient_is_that_of_the_formula() -> None:
    maps, weights = torch.randn(2, 2, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(
        (weights * LocalResponse(alpha=0.1)(given := maps.requires_grad_())).sum(), given
    )
    exact = maps.detach().double().requires_grad_()
    energy = sum(F.pad(exact.square(), (0, 0, 0, 0, 2, 2))[:, shift : shift + 6] for shift in range(5))
    (expected,) = torch.autograd.grad((weights * exact / (2 + 0.1 * energy) ** 0.75).sum(), exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_under_autocast_it_computes_in_float32_and_keeps_the_type() -> None:
    maps = (300 * torch.rand(1, 8, 2, 2)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = LocalResponse()(maps)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, LocalResponse()(maps.float()).bfloat16())


def test_in_the_stem_it_stands_where_alexnet_has_it_behind_the_relu_and_before_the_pooling() -> None:
    config = ModelConfig.model_validate(
        {"name": "resnet18", "attention": {"gates": {"name": "lrn", "stages": [0]}}}
    )
    model = build_model(config, num_classes=3, in_chans=3, image_size=32)
    pooled = []
    model.maxpool.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    images = torch.rand(1, 3, 32, 32)
    model.eval()(images)
    rectified = torch.relu(model.bn1(model.conv1(images)))
    expected = by_the_paper(rectified.detach().double().numpy(), n=5)
    np.testing.assert_allclose(pooled[0].detach().numpy(), expected, rtol=1e-5)
