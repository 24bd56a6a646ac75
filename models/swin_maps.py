"""Where a Swin looks: the attention each place receives within its window, put together to the whole map again.

Shapes: B batch, H heads, D head width, W windows of n places, gh x gw places of the stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import SwinTransformer, SwinTransformerV2
from torch import Tensor, nn

from configs.base import ConfigError
from models.map_hooks import MapHooks, pick
from models.row_sums import sum_of_rows
from models.two_stage import Windows


class SwinMaps(MapHooks):
    """Mean attention each place receives from the places of its window, averaged over heads; sums to 1 over the map.

    Blocks by index over all stages, from the input to the output. Shifted windows are moved back; padding neither
    gives nor receives.
    """

    kind = "attention"

    def __init__(self, model: nn.Module, layers: Sequence[int] = (-1,)) -> None:
        super().__init__(pick(window_blocks(model), layers, what="attention in layers"))
        self._grids: dict[int, tuple[int, int]] = {}
        self._masks: dict[int, Tensor | None] = {}

    def _attach(self, index: int, module: nn.Module) -> None:
        block: Any = module
        self._keep(block.register_forward_pre_hook(partial(self._on_block, index)))
        self._keep(block.attn.register_forward_pre_hook(partial(self._on_windows, index), with_kwargs=True))
        if _is_v1(block.attn):
            self._keep(block.attn.qkv.register_forward_hook(partial(self._on_qkv, index)))

    def _on_block(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._grids[index] = (inputs[0].shape[1], inputs[0].shape[2])

    def _on_windows(
        self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]
    ) -> None:
        self._masks[index] = named.get("mask", inputs[1] if len(inputs) > 1 else None)
        if not _is_v1(module):
            self._add(index, *_cosine_scores(cast(Any, module), inputs[0]))

    def _on_qkv(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], qkv: Tensor) -> None:
        attention = cast(Any, self._modules[index]).attn
        q, k, _ = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        self._add(index, q, k, attention.scale, attention._get_rel_pos_bias())

    def _add(self, index: int, q: Tensor, k: Tensor, scale: float | Tensor, bias: Tensor) -> None:
        """Makes the map from q and k of all windows, [B W, H, n, D], and the bias [1, H, n, n]."""
        block = cast(Any, self._modules[index])
        grid, mask = self._grids.pop(index), self._masks.pop(index)
        windows = Windows(grid=grid, side=tuple(block.window_size))
        num_windows = math.prod(windows.counts)
        biases = [bias] if mask is None else [bias, mask.unsqueeze(1)]
        q_BWHnD, k_BWHnD = (x.unflatten(0, (-1, num_windows)) for x in (q, k))
        real_Wn = windows.places(q.device).float()
        weights_BWn = real_Wn.expand(len(q_BWHnD), -1, -1)
        mass_BWn = sum_of_rows(weights_BWn, q_BWHnD, k_BWHnD, scale=scale, biases=biases)
        mass_BN = windows.join(mass_BWn[:, :, None, :, None]).flatten(1)
        shares = (mass_BN / mass_BN.sum(dim=1, keepdim=True)).unflatten(1, grid)
        self._seen[index] = shares.roll(tuple(block.shift_size), dims=(1, 2))


def window_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a timm Swin (v1 or v2) by name, from the input to the output; ConfigError for other networks."""
    if not isinstance(model, SwinTransformer | SwinTransformerV2):
        raise ConfigError(
            f"{type(model).__name__} has no windows to show: a Swin of timm is needed (swin_*, swinv2_*)"
        )
    return [
        (f"layers.{stage}.blocks.{number}", block)
        for stage, layer in enumerate(cast(Any, model).layers)
        for number, block in enumerate(layer.blocks)
    ]


def _is_v1(attention: nn.Module) -> bool:
    return hasattr(attention, "relative_position_bias_table")


def _cosine_scores(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, the factor and the bias of Swin v2 (Liu et al. 2022, section 3.2) from the tokens of all windows.

    Projected again, since timm's module adds its bias on the way and shows neither.
    """
    dim = attention.qkv.weight.shape[0] // 3
    bias = None
    if attention.q_bias is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias])
    qk = F.linear(x, attention.qkv.weight[: 2 * dim], bias)
    q, k = qk.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).float().unbind(0)
    factor = attention.logit_scale.float().clamp(max=math.log(100.0)).exp()
    table = attention.cpb_mlp(attention.relative_coords_table).view(-1, attention.num_heads)
    num_places = math.prod(attention.window_size)
    learned = table[attention.relative_position_index.view(-1)].view(num_places, num_places, -1)
    return (
        F.normalize(q, dim=-1),
        F.normalize(k, dim=-1),
        factor,
        16 * learned.permute(2, 0, 1).unsqueeze(0).sigmoid(),
    )
