"""Attention in e4m3: q, k, v and probabilities are rounded to 8 bits, and 8 bits are what the backward pass keeps.

    q' = e4m3(q), k' = e4m3(k), v' = e4m3(v)       a scale for each head of each image
    p  = softmax(scale q' k'^T + bias)             in float32
    p' = e4m3(p / max p) / sum                     of each row, whose largest is 1: the scale is 2^-8 whatever comes
    out = p' v'

Gradients are those of p and p' as they stand, in float32, and go straight through the rounding (Bengio et al. 2013).
Rows are formed a block at a time, and formed again in the backward pass: no [N, M] is kept, and none is formed whole
where it is large.

Shapes: B batch, H heads, N queries, M keys, D head width; the bias is [G, H, N, M], and item b has that of b mod G.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.blocked_attention import empty_out
from models.float8 import E4M3, decode, encode, multiply, scales_of

_BLOCK_BYTES = 1 << 19
"""Of the scores that are formed at once, per thread of a CPU: what fits in a core's cache."""
_BLOCK_BYTES_OF_A_GPU = 1 << 26
_LARGEST_SHARE = 256.0
"""What the largest of a row becomes in e4m3: its scale is 2^-8."""


def attend_in_float8(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v as [B, H, N, D], with gradients for all four; q, k and v are of one dtype."""
    out: Tensor = _forward(q, k, v, bias, scale)[0]
    return out


class _Coded(NamedTuple):
    """What is kept for the backward pass, beside the bias."""

    q: Tensor
    k: Tensor
    v: Tensor
    scales: Tensor
    """float32 [3, B, H, 1, 1]."""


@torch.library.custom_op("mirada::attend_in_float8", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scales = [scales_of(x) for x in (q, k, v)]
    coded = _Coded(
        encode(q, scales[0]), encode(k, scales[1]), encode(v, scales[2]), scales=torch.stack(scales)
    )
    out, dtype = empty_out(q, v), _dtype_of_sums(q)
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(coded, bias):
            shares = _shares_of(block, coded, bias, scale, dtype)
            sums = multiply(shares.coded, block.of(coded.v).transpose(-2, -1), dtype)
            block.rows_of(out).copy_(sums * (block.of(coded.scales[2]) / shares.coded_sum))
    return out, *coded


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    coded_q, coded_k, coded_v = (torch.empty(x.shape, dtype=E4M3, device=x.device) for x in (q, k, v))
    scales = torch.empty((3, *q.shape[:2], 1, 1), dtype=torch.float32, device=q.device)
    return empty_out(q, v), coded_q, coded_k, coded_v, scales


@torch.library.custom_op("mirada::attend_in_float8_backward", mutates_args=())
def _backward(
    out_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    scale: float,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    coded, dtype = _Coded(q, k, v, scales), _dtype_of_sums(out_grad)
    grads = [torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v)]
    of_bias = torch.zeros(_bias_shape(bias, wants_bias), dtype=dtype, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(coded, bias):
            of_scores = _add_gradients(block, coded, bias, scale, out_grad, grads)
            if wants_bias:
                block.of_bias(of_bias).add_(of_scores.sum(dim=0))
    of_q, of_k, of_v = (grad.to(out_grad.dtype) for grad in grads)
    return of_q, of_k, of_v, of_bias


@_backward.register_fake
def _(
    out_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    scale: float,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_q, of_k, of_v = (torch.empty(x.shape, dtype=out_grad.dtype, device=x.device) for x in (q, k, v))
    shape, dtype = _bias_shape(bias, wants_bias), _dtype_of_sums(out_grad)
    return of_q, of_k, of_v, torch.empty(shape, dtype=dtype, device=q.device)


def _keep_coded(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], inputs[3])
    ctx.scale = inputs[4]


def _differentiate(ctx: Any, out_grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    *coded, bias = ctx.saved_tensors
    wants_bias = bool(ctx.needs_input_grad[3])
    *of_qkv, of_bias = _backward(out_grad, *coded, bias, ctx.scale, wants_bias)
    return (*of_qkv, of_bias.to(bias.dtype) if wants_bias else None, None)


_forward.register_autograd(_differentiate, setup_context=_keep_coded)


class _Shares(NamedTuple):
    """Softmax rows [..., n, M] of a block."""

    exact: Tensor
    coded: Tensor
    """In e4m3, the largest of each row as 256."""
    coded_sum: Tensor
    """Of each row, [..., n, 1]; NaN where a row has no numbers."""


def _shares_of(
    block: _Block, coded: _Coded, bias: Tensor | None, scale: float, dtype: torch.dtype
) -> _Shares:
    factor = block.of(coded.scales[0]) * block.of(coded.scales[1]) * scale
    scores = multiply(block.rows_of(coded.q), block.of(coded.k), dtype) * factor
    if bias is not None:
        scores += block.of_bias(bias)
    exact = scores.softmax(dim=-1)
    largest = exact.amax(dim=-1, keepdim=True)
    rounded = (exact * (_LARGEST_SHARE / largest)).to(E4M3)
    return _Shares(exact, rounded, decode(rounded, dtype).sum(dim=-1, keepdim=True) + (largest - largest))


def _add_gradients(
    block: _Block, coded: _Coded, bias: Tensor | None, scale: float, out_grad: Tensor, grads: list[Tensor]
) -> Tensor:
    """Adds those of q, k and v; gives that of the scores, [R, G, h, n, M]."""
    dtype = grads[0].dtype
    # Products have the inputs' type on a GPU, as in FlashAttention's backward; a CPU is fastest in float32.
    lower = out_grad.dtype if out_grad.is_cuda else dtype
    shares = _shares_of(block, coded, bias, scale, dtype)
    q, k, v = (
        (decode(x, dtype) * block.of(s)).to(lower)
        for x, s in zip(
            (block.rows_of(coded.q), block.of(coded.k), block.of(coded.v)), coded.scales, strict=True
        )
    )
    from_out = block.rows_of(out_grad).to(lower)
    rounded = (decode(shares.coded, dtype) / shares.coded_sum).to(lower)
    of_shares = (from_out @ v.transpose(-2, -1)).to(dtype)
    of_scores = torch._softmax_backward_data(of_shares, shares.exact, -1, dtype)
    products = (of_scores * scale).to(lower)
    block.rows_of(grads[0]).copy_(products @ k)
    block.of(grads[1]).add_(products.transpose(-2, -1) @ q)
    block.of(grads[2]).add_(rounded.transpose(-2, -1) @ from_out)
    return of_scores


class _Block(NamedTuple):
    """Rows that are formed together: of some images, of windows of each, of heads of each, some queries of each."""

    num_windows: int
    """Items of the bias; images are what has each of them once."""
    images: slice
    windows: slice
    heads: slice
    queries: slice

    def of(self, x_BHND: Tensor) -> Tensor:
        """A view [R images, G windows, h heads, N, D]."""
        items: Tensor = x_BHND.unflatten(0, (-1, self.num_windows))
        return items[self.images, self.windows, self.heads]

    def rows_of(self, x_BHND: Tensor) -> Tensor:
        return self.of(x_BHND)[..., self.queries, :]

    def of_bias(self, bias_GHNM: Tensor) -> Tensor:
        return bias_GHNM[self.windows, self.heads, self.queries]


def _blocks(coded: _Coded, bias: Tensor | None) -> Iterator[_Block]:
    """All rows in blocks of as many as fit: whole images, else whole windows, else whole heads, else some queries."""
    num_windows = 1 if bias is None else len(bias)
    (batch, heads, n, _), m = coded.q.shape, coded.k.shape[2]
    rows = max(1, _block_bytes(coded.q.device) // (4 * m))
    sizes = (batch // num_windows, num_windows, heads, n)
    parts = []
    for size in reversed(sizes):
        parts.append([slice(i, i + rows) for i in range(0, size, rows)])
        rows = max(1, rows // size)
    for images, windows, of_heads, queries in itertools.product(*reversed(parts)):
        yield _Block(num_windows, images, windows, of_heads, queries)


def _block_bytes(device: torch.device) -> int:
    return _BLOCK_BYTES * torch.get_num_threads() if device.type == "cpu" else _BLOCK_BYTES_OF_A_GPU


def _dtype_of_sums(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _bias_shape(bias: Tensor | None, wanted: bool) -> torch.Size:
    return bias.shape if bias is not None and wanted else torch.Size([0])
