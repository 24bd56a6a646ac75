"""Swin's attention in windows on attend(): its learned bias, shifted windows with masks, and v2's cosines.

timm leaves both unfused by default. The bias of a window and the mask of shifted windows are one sum of [G, H, N, N],
not one per image, and attend() gives the bias its gradient.

Shapes: B windows of all images, G windows of one image, H heads, N = side^2 tokens of a window, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from models.attention import Kernel, attend


class SwinAttention(swin_transformer.WindowAttention):
    """Scaled dot products and a table of relative positions (Liu et al. 2021, equation 4)."""

    kernel: Kernel = "auto"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows [B, N, C], mask [G, N, N] added to scores -> [B, N, C]; dropout of scores is left to timm."""
        if self.training and self.attn_drop.p > 0:
            dropped: Tensor = super().forward(x, mask)
            return dropped
        q, k, v = _heads(self.qkv(x), self.num_heads)
        bias = _masked(self._get_rel_pos_bias(), mask)
        return _project(self, attend(q, k, v, bias, kernel=self.kernel, scale=self.scale))


class SwinV2Attention(swin_transformer_v2.WindowAttention):
    """Cosines with a learned temperature, and positions from a small network (Liu et al. 2022, equations 2 and 3)."""

    kernel: Kernel = "auto"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `SwinAttention`."""
        if self.training and self.attn_drop.p > 0:
            dropped: Tensor = super().forward(x, mask)
            return dropped
        parts: Any = (self.q_bias, self.k_bias, self.v_bias)
        bias_of_qkv = None if self.q_bias is None else torch.cat(parts)
        q, k, v = _heads(F.linear(x, self.qkv.weight, bias_of_qkv), self.num_heads)
        # The temperature is on the N x D queries, not on the N x N cosines.
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=_MAX_LOG_SCALE).exp()
        bias = _masked(self._position_bias(), mask)
        mixed = attend(q, F.normalize(k, dim=-1), v, bias, kernel=self.kernel, scale=1.0)
        return _project(self, mixed)

    def _position_bias(self) -> Tensor:
        """[1, H, N, N], within 0 and 16."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        bias: Tensor = 16 * table[self.relative_position_index].permute(2, 0, 1).sigmoid().unsqueeze(0)
        return bias


SWIN_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    swin_transformer.WindowAttention: SwinAttention,
    swin_transformer_v2.WindowAttention: SwinV2Attention,
}
"""timm's layers, and what `use_attend` makes of them."""

_MAX_LOG_SCALE = math.log(100)


def _heads(qkv_BNE: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    split: Tensor = qkv_BNE.unflatten(2, (3, num_heads, -1))
    return tuple(split.permute(2, 0, 3, 1, 4).unbind(0))


def _masked(bias_1HNN: Tensor, mask_GNN: Tensor | None) -> Tensor:
    return bias_1HNN if mask_GNN is None else bias_1HNN + mask_GNN.unsqueeze(1)


def _project(layer: Any, mixed_BHND: Tensor) -> Tensor:
    projected: Tensor = layer.proj_drop(layer.proj(mixed_BHND.transpose(1, 2).flatten(2)))
    return projected
