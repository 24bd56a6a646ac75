"""Attention with a learned bias on a CPU, a block of maps at a time: what torch's fused kernels for CPUs do not have.

There torch falls back to whole maps as soon as the bias wants a gradient, and keeps them for the backward pass. Here
the maps of a few windows are formed, used while they are in the cache, and formed again in the backward pass: between
the two, nothing is kept but q, k, v and the bias. The bias's gradient is summed over the batch as it comes.

Shapes: B batch, H heads, N queries, M keys, D head width; the bias is [G, H, N, M], and item b has that of b mod G: the
G windows of an image, say, whose masks are the same in all images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK_BYTES = 1 << 19
"""Of the maps that are formed at once, per thread: what fits in a core's cache; less costs more calls."""


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v as [B, H, N, D], with gradients for all four; all of one dtype."""
    out: Tensor = _forward(q, k, v, bias, scale)
    return out


class _Block(NamedTuple):
    """Items of the batch whose maps of one head are formed together, and the items of the bias that are theirs."""

    head: int
    items: slice
    bias: slice
    values: Tensor
    """Their bias, [items, N, M]."""

    def of(self, x_BHND: Tensor) -> Tensor:
        return x_BHND[self.items, self.head]


@torch.library.custom_op("mirada::attend_in_blocks", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    out = empty_out(q, v)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(bias, batch=len(q)):
            block.of(out).copy_(_map_of(block, q, k, scale) @ block.of(v))
    return out


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    return empty_out(q, v)


@torch.library.custom_op("mirada::attend_in_blocks_backward", mutates_args=(), device_types="cpu")
def _backward(
    out_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _Gradients.empty(q, k, v, bias)
    grads.bias.zero_()
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(bias, batch=len(q)):
            _add_gradients(block, grads, out_grad, (q, k, v), scale)
    return grads.q, grads.k, grads.v, grads.bias


@_backward.register_fake
def _(
    out_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _Gradients.empty(q, k, v, bias)
    return grads.q, grads.k, grads.v, grads.bias


class _Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    """float32 at least: it is a sum over the batch."""

    @classmethod
    def empty(cls, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> _Gradients:
        def like(x: Tensor, dtype: torch.dtype) -> Tensor:
            return torch.empty(x.shape, dtype=dtype, device=x.device)

        sums = torch.promote_types(bias.dtype, torch.float32)
        return cls(like(q, q.dtype), like(k, k.dtype), like(v, v.dtype), like(bias, sums))


def _add_gradients(
    block: _Block, grads: _Gradients, out_grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], scale: float
) -> None:
    q, k, v = inputs
    shares = _map_of(block, q, k, scale)
    from_out = block.of(out_grad)
    block.of(grads.v).copy_(shares.transpose(1, 2) @ from_out)
    of_shares = from_out @ block.of(v).transpose(1, 2)
    # Softmax's own backward, in one pass over the map.
    of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
    by_bias = of_scores.unflatten(0, (-1, block.bias.stop - block.bias.start))
    grads.bias[block.bias, block.head] += by_bias.sum(dim=0, dtype=grads.bias.dtype)
    block.of(grads.q).copy_((of_scores @ block.of(k)).mul_(scale))
    block.of(grads.k).copy_((of_scores.transpose(1, 2) @ block.of(q)).mul_(scale))


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.scale = inputs[4]


def _differentiate(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bias = ctx.saved_tensors
    *of_qkv, of_bias = _backward(out_grad, q, k, v, bias, ctx.scale)
    return (*of_qkv, of_bias.to(bias.dtype), None)


_forward.register_autograd(_differentiate, setup_context=_keep_inputs)


def _map_of(block: _Block, q: Tensor, k: Tensor, scale: float) -> Tensor:
    scores = torch.baddbmm(block.values, block.of(q), block.of(k).transpose(1, 2), alpha=scale)
    return scores.softmax(dim=-1)


def _blocks(bias: Tensor, *, batch: int) -> Iterator[_Block]:
    """All maps in blocks: of some images with all their windows, or of some windows of one image."""
    num_groups, num_heads, n, m = bias.shape
    most = max(1, _BLOCK_BYTES * torch.get_num_threads() // (bias.element_size() * n * m))
    images = min(most // num_groups, batch // num_groups)
    for head in range(num_heads):
        values = bias[:, head]
        if images > 0:
            repeated = values.expand(images, n, m) if num_groups == 1 else values.repeat(images, 1, 1)
            for start in range(0, batch, images * num_groups):
                stop = min(start + images * num_groups, batch)
                yield _Block(head, slice(start, stop), slice(0, num_groups), repeated[: stop - start])
        else:
            for first in range(0, num_groups, most):
                last = min(first + most, num_groups)
                for image in range(0, batch, num_groups):
                    yield _Block(
                        head, slice(image + first, image + last), slice(first, last), values[first:last]
                    )


def empty_out(q: Tensor, v: Tensor) -> Tensor:
    """[B, H, N, D] that is [B, N, H, D] in memory, as the layers that follow want it."""
    batch, heads, n, _ = q.shape
    return torch.empty(batch, n, heads, v.shape[-1], dtype=q.dtype, device=q.device).transpose(1, 2)
