"""Where a CoAtNet looks: its convolutional stem feeds Transformer blocks with relative positions and no class token.

Such a network pools all tokens, so what it looks at is what all queries look at: the mean over queries of the softmax
rows (column mass). Rows are formed a few queries at a time beside the fused kernel, never N x N.

Shapes: B batch, H heads, D head width, N = gh x gw tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.maxxvit import Attention2d
from torch import Tensor, nn

from configs.base import ConfigError
from models.map_hooks import MapHooks, pick
from models.row_sums import sum_of_rows


class RelativeAttentionMaps(MapHooks):
    """Mean attention each token receives in the blocks asked for, averaged over heads and queries; sums to 1."""

    kind = "attention"

    def __init__(self, model: nn.Module, layers: Sequence[int] = (-1,)) -> None:
        blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Attention2d)]
        if not blocks:
            raise ConfigError(
                f"{type(model).__name__} has no attention over the whole image (a MaxViT attends within partitions), "
                "so there is no map to show; a timm VisionTransformer or CoAtNet has one"
            )
        super().__init__(pick(blocks, layers, what="attention in layers"))
        self._shared_bias: dict[int, Tensor | None] = {}

    def _attach(self, index: int, module: nn.Module) -> None:
        attention: Any = module
        self._keep(attention.register_forward_pre_hook(partial(self._on_call, index), with_kwargs=True))
        self._keep(attention.qkv.register_forward_hook(partial(self._on_qkv, index, attention)))

    def _on_call(
        self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]
    ) -> None:
        self._shared_bias[index] = named.get("shared_rel_pos", inputs[1] if len(inputs) > 1 else None)

    def _on_qkv(
        self, index: int, attention: Any, module: nn.Module, inputs: tuple[Tensor, ...], qkv_BCHW: Tensor
    ) -> None:
        self._seen[index] = column_mass(attention, qkv_BCHW, self._shared_bias.pop(index))


def column_mass(attention: Any, qkv_BCHW: Tensor, shared_bias: Tensor | None) -> Tensor:
    """Mean attention each token receives, [B, gh, gw] float32, sums to 1; from what the block's qkv layer puts out."""
    batch, _, height, width = qkv_BCHW.shape
    q_BHND, k_BHND = _queries_and_keys(attention, qkv_BCHW)
    bias = attention.rel_pos.get_bias() if attention.rel_pos is not None else shared_bias
    weights_BN = torch.ones(batch, height * width, device=qkv_BCHW.device)
    mass_BN = sum_of_rows(
        weights_BN, q_BHND, k_BHND, scale=attention.scale, biases=[] if bias is None else [bias]
    )
    map_BHW: Tensor = (mass_BN / mass_BN.sum(dim=1, keepdim=True)).unflatten(1, (height, width))
    return map_BHW


def _queries_and_keys(attention: Any, qkv_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, depth = qkv_BCHW.shape[0], attention.num_heads, attention.dim_head
    if attention.head_first:
        q_BHDN, k_BHDN, _ = qkv_BCHW.reshape(batch, heads, depth * 3, -1).chunk(3, dim=2)
    else:
        q_BHDN, k_BHDN, _ = qkv_BCHW.reshape(batch, 3, heads, depth, -1).unbind(1)
    return q_BHDN.transpose(-1, -2), k_BHDN.transpose(-1, -2)
