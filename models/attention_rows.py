"""Rows of softmax attention during training: formed beside the fused kernels, from what the layers compute anyway.

Forward hooks see the q and k of a layer and form the rows of some queries, at equal distances: O(R N) per head, never
N x N. They compute whenever the layer trains, since activation checkpointing runs it a second time in the backward pass
and must then find the same operations.

Shapes: B images or windows, H heads, N queries and keys, R rows, D head width, W windows of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from models.full_precision import without_autocast


class Rows(NamedTuple):
    """Some rows of a layer's attention."""

    shares: Tensor
    """float32 [B, H, R, N]; each row sums to 1."""
    allowed: Tensor
    """bool [B or 1, 1, R, N]: the keys that a row may look at."""

    @property
    def num_keys(self) -> Tensor:
        """float32 [B or 1, 1, R]: how many keys each row may look at."""
        return self.allowed.sum(dim=-1).float()


OnRows = Callable[[Rows], None]


def has_rows(module: nn.Module) -> bool:
    """Whether a layer's rows can be formed: timm's plain attention and Swin's windows, whatever kernel they run on."""
    return isinstance(module, Attention | WindowAttention)


def watch_rows(layer: nn.Module, on_rows: OnRows, *, max_rows: int) -> None:
    """Calls `on_rows` in each forward of a training layer, for good."""
    attention: Any = layer
    if isinstance(layer, Attention):
        plain = _PlainRows(attention, on_rows, max_rows)
        attention.q_norm.register_forward_hook(plain.on_queries)
        attention.k_norm.register_forward_hook(plain.on_keys)
    else:
        windows = _WindowRows(attention, on_rows, max_rows)
        attention.register_forward_pre_hook(windows.on_call, with_kwargs=True)
        attention.qkv.register_forward_hook(windows.on_qkv)


class _PlainRows:
    """Hooks on q_norm and k_norm, which a layer calls in this order."""

    def __init__(self, attention: Any, on_rows: OnRows, max_rows: int) -> None:
        self._attention, self._on_rows, self._max_rows = attention, on_rows, max_rows
        self._queries: Tensor | None = None

    def on_queries(self, module: nn.Module, inputs: tuple[Tensor, ...], q_BHND: Tensor) -> None:
        if self._attention.training:
            self._queries = q_BHND[:, :, _places(q_BHND, self._max_rows)]

    def on_keys(self, module: nn.Module, inputs: tuple[Tensor, ...], k_BHND: Tensor) -> None:
        q_BHRD, self._queries = self._queries, None
        if q_BHRD is None:
            return
        shares = _softmax_rows(q_BHRD * self._attention.scale, k_BHND)
        allowed = torch.ones_like(shares[:1, :1], dtype=torch.bool)
        self._on_rows(Rows(shares, allowed))


class _WindowRows:
    """Hooks on Swin's attention, for the mask of shifted windows, and on its qkv layer."""

    def __init__(self, attention: Any, on_rows: OnRows, max_rows: int) -> None:
        self._attention, self._on_rows, self._max_rows = attention, on_rows, max_rows
        self._mask: Tensor | None = None

    def on_call(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mask = named.get("mask", inputs[1] if len(inputs) > 1 else None)

    def on_qkv(self, module: nn.Module, inputs: tuple[Tensor, ...], qkv_BNE: Tensor) -> None:
        mask_WNN, self._mask = self._mask, None
        attention = self._attention
        if not attention.training:
            return
        split = qkv_BNE.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        places = _places(split[0], self._max_rows)
        bias = attention._get_rel_pos_bias()[:, :, places]
        allowed = torch.ones_like(bias[:, :1], dtype=torch.bool)
        if mask_WNN is not None:
            images = split.shape[1] // mask_WNN.shape[0]
            mask_B1RN = mask_WNN[:, places].repeat(images, 1, 1).unsqueeze(1)
            bias, allowed = bias + mask_B1RN, mask_B1RN == 0
        self._on_rows(Rows(_softmax_rows(split[0][:, :, places] * attention.scale, split[1], bias), allowed))


def _places(q_BHND: Tensor, max_rows: int) -> Tensor:
    """The queries whose rows are formed, the first among them: the class token where there is one."""
    num_queries = q_BHND.shape[2]
    count = min(max_rows, num_queries)
    return torch.arange(count, device=q_BHND.device) * num_queries // count


def _softmax_rows(q_BHRD: Tensor, k_BHND: Tensor, bias: Tensor | None = None) -> Tensor:
    with without_autocast(q_BHRD):
        scores = q_BHRD.float() @ k_BHND.float().transpose(-1, -2)
        return (scores if bias is None else scores + bias.float()).softmax(dim=-1)
