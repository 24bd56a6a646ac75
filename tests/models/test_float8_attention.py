"""models.float8_attention: float64 attention with the same rounding, cut anywhere, that keeps a byte a number."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import models.float8_attention as float8
from models.attention import attend
from models.float8_attention import attend_in_float8


def inputs(
    windows: int = 0, *, images: int = 3, dtype: torch.dtype = torch.float64, width: int = 8
) -> list[Tensor]:
    """q, k and v as a layer has them, views of one tensor, of different sizes; with `windows` a bias for each."""
    generator = torch.Generator().manual_seed(windows)
    qkv = torch.randn(images * max(windows, 1), 6, 3, 2, width, generator=generator, dtype=dtype)
    qkv = qkv * torch.tensor([2.0, 0.3, 700.0]).view(3, 1, 1)
    given = [x.transpose(1, 2) for x in qkv.unbind(2)]
    given += [torch.randn(windows, 2, 6, 6, generator=generator, dtype=dtype)] if windows else []
    return [x.requires_grad_() for x in given]


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """Forward what is rounded, backward as if nothing had been."""
    return exact + (rounded - exact).detach()


def rounded_heads(x: Tensor) -> Tensor:
    """Head by head: divided by a power of two that brings its largest number between 224 and 448, and rounded."""
    result = torch.empty_like(x)
    for b in range(len(x)):
        for h in range(x.shape[1]):
            scale = 2.0 ** math.ceil(math.log2(x[b, h].abs().max().item() / 448))
            result[b, h] = (x[b, h] / scale).float().to(torch.float8_e4m3fn).double() * scale
    return result


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    """In float64, by autograd: nothing of models.float8 is used."""
    q, k, v = (straight_through(x, rounded_heads(x.detach())) for x in (q, k, v))
    scores = scale * q @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.repeat(len(q) // len(bias), 1, 1, 1)
    shares = scores.softmax(dim=-1)
    codes = (256 * shares / shares.amax(dim=-1, keepdim=True)).float().to(torch.float8_e4m3fn).double()
    return straight_through(shares, codes / codes.sum(dim=-1, keepdim=True)) @ v


def with_gradients(function: object, given: list[Tensor], *, scale: float = 0.4) -> list[Tensor]:
    q, k, v, bias = [*given, None][:4]
    out = function(q, k, v, bias, scale=scale)  # type: ignore[operator]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = direction.to(out.device)
    return [out, *torch.autograd.grad((out.double() * direction).sum(), given)]


@pytest.mark.parametrize("windows", [0, 1, 4])
@pytest.mark.parametrize("rows", [1, 3, 6, 7, 12, 30, 100, 10_000])
def test_any_size_of_blocks_gives_float64_attention_with_the_same_rounding(
    windows: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float8, "_BLOCK_BYTES", rows * 6 * 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    given = inputs(windows)
    found, wanted = (with_gradients(function, given) for function in (attend_in_float8, reference))
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        # Scales and the factors made of them are float32.
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precisions_round_alike(dtype: torch.dtype, tolerance: float) -> None:
    lowered = [x.detach().to(dtype).requires_grad_() for x in inputs(2)]
    exact = [x.detach().double().requires_grad_() for x in lowered]
    found, wanted = with_gradients(attend_in_float8, lowered), with_gradients(reference, exact)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        assert (got - want).norm() <= tolerance * want.norm()


def test_its_error_is_that_of_three_bits_of_mantissa() -> None:
    """Beside attention without rounding: some percent, and more than of bfloat16 (benchmarks/float8.py)."""
    given = inputs(1, images=40, width=64)
    given[3] = given[3].detach().requires_grad_()
    exact = with_gradients(lambda *x, scale: attend(*x, kernel="math", scale=scale), given)
    for got, want in zip(with_gradients(attend_in_float8, given), exact, strict=True):
        assert 0.01 < (got - want).norm() / want.norm() < 0.1


def test_a_byte_for_each_number_of_q_k_and_v_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    given = inputs(images=10)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attend_in_float8(*given, None, scale=0.4)  # type: ignore[misc]
    num_heads = 10 * 2
    sizes = sorted(x.untyped_storage().nbytes() for x in kept)
    assert sizes == [3 * num_heads * 4, *[x.numel() for x in given]]


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    given = [x.detach() for x in inputs(images=4)]
    whole = attend_in_float8(*given, None, scale=0.4)  # type: ignore[misc]
    given[0][:3] *= 1000
    assert torch.equal(attend_in_float8(*given, None, scale=0.4)[3], whole[3])  # type: ignore[misc]
    alone = attend_in_float8(*(x[3:] for x in given), None, scale=0.4)  # type: ignore[misc]
    torch.testing.assert_close(alone, whole[3:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("strange", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_is_not_hidden_by_the_rounding(which: int, strange: float) -> None:
    given = [x.detach().clone() for x in inputs()]
    given[which][1, 1, 2, 3] = strange
    out = attend_in_float8(*given, None, scale=0.4)  # type: ignore[misc]
    assert out[1, 1].isnan().all() and out[1, 0].isfinite().all() and out[0].isfinite().all()


def test_masked_keys_have_no_share() -> None:
    q, k, v = (x.detach() for x in inputs())
    mask = torch.zeros(1, 1, 1, 6, dtype=torch.float64)
    mask[..., 4:] = -math.inf
    found = attend(q, k, v, mask, kernel="float8")
    # What changes neither their heads' scales nor what can be seen changes nothing.
    for x in (k, v):
        x[:, :, 4:] = x[:, :, 4:].flip(2)
    assert torch.equal(attend(q, k, v, mask, kernel="float8"), found)
    unmasked = attend(q, k, v, kernel="float8")
    assert not torch.equal(unmasked, found)


def test_gradients_are_given_to_those_who_want_one() -> None:
    q, k, v, bias = (x.detach() for x in inputs(1))
    out = attend_in_float8(q, k.requires_grad_(), v, bias, scale=0.4)
    out.sum().backward()
    assert k.grad is not None and k.grad.abs().sum() > 0
    assert bias.grad is None and q.grad is None and v.grad is None


def test_the_operators_keep_torchs_contract() -> None:
    """What of opcheck knows e4m3; test_every_system.py compiles and checkpoints whole networks."""
    for windows in (0, 2):
        q, k, v, bias = [*inputs(windows), None][:4]
        torch.library.opcheck(
            float8._forward,
            (q, k, v, bias, 0.4),
            test_utils=("test_faketensor", "test_autograd_registration"),
        )


@pytest.mark.gpu
@pytest.mark.parametrize("windows", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_same_on_a_gpu(dtype: torch.dtype, windows: int) -> None:
    lowered = [x.detach().to(dtype) for x in inputs(windows, width=32)]
    on_gpu = [x.cuda().requires_grad_() for x in lowered]
    exact = [x.double().requires_grad_() for x in lowered]
    found = with_gradients(partial(attend, kernel="float8"), on_gpu)
    for got, want in zip(found, with_gradients(reference, exact), strict=True):
        assert (got.cpu() - want).norm() <= 0.02 * want.norm()
