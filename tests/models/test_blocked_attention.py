"""models.blocked_attention: equal to whole maps however they are cut, keeps none of them, and is torch's to compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import models.blocked_attention as blocked
from models.blocked_attention import attend_in_blocks


def inputs(groups: int, *, images: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v as a layer has them, views of one tensor, and a bias."""
    generator = torch.Generator().manual_seed(groups)
    qkv = torch.randn(images * groups, 6, 3, 2, 8, generator=generator, dtype=dtype)
    bias = torch.randn(groups, 2, 6, 6, generator=generator, dtype=dtype)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return [x.requires_grad_() for x in (q, k, v, bias)]


def whole(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float) -> Tensor:
    scores = scale * q @ k.transpose(-1, -2)
    return (scores + bias.repeat(len(q) // len(bias), 1, 1, 1)).softmax(dim=-1) @ v


MAP_BYTES = 6 * 6 * 8


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("maps", [0.5, 1, 3, 4, 5, 8, 100])
def test_any_size_of_blocks_gives_the_result_of_whole_maps(
    groups: int, maps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "_BLOCK_BYTES", int(maps * MAP_BYTES))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    given = inputs(groups)
    out, expected = (function(*given, scale=0.4) for function in (attend_in_blocks, whole))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad((out * direction).sum(), given)
    wanted = torch.autograd.grad((expected * direction).sum(), given)
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)


def test_the_operators_keep_torchs_contract() -> None:
    for groups in (1, 4):
        torch.library.opcheck(blocked._forward, (*inputs(groups), 0.4))


def test_nothing_of_the_size_of_the_maps_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    given = inputs(1, images=40)
    size_of_maps = given[0].shape[0] * given[0].shape[1] * 6 * 6
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        attend_in_blocks(*given, scale=0.4)
    assert sorted(kept) == sorted(x.numel() for x in given) and size_of_maps not in kept
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        whole(*given, scale=0.4)
    assert size_of_maps in kept


def test_a_bias_gradient_in_bfloat16_is_summed_in_float32() -> None:
    exact = inputs(1, images=512)
    lowered = [x.detach().bfloat16().requires_grad_() for x in exact]
    (gradient,) = torch.autograd.grad(attend_in_blocks(*lowered, scale=0.4).square().sum(), lowered[3])
    (wanted,) = torch.autograd.grad(whole(*exact, scale=0.4).square().sum(), exact[3])
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())
