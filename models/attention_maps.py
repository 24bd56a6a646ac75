"""Where a network looks: one map per image, from a ViT's attention or from a CNN's activations, fused kernels left on.

    with AttentionMaps(vit, layers=(-1,)) as maps:     # or EnergyMaps, RelativeAttentionMaps; open_maps() picks
        logits = vit(images)
    (last,) = maps.take()                              # float32 [B, gh, gw], sums to 1 over the grid

A fused kernel never forms the N x N attention matrix, and nothing here does either. What a picture or a distillation
loss needs is one row of it: from the q of one query and all k, which the block computes anyway and which forward hooks
on its q_norm and k_norm see. The hook on q_norm keeps H x D numbers per image, the one on k_norm turns them into H x N
scores and keeps their mean over heads: O(N) memory beside the O(N D) of k itself, and O(N D) operations where the
block's attention has O(N^2 D).

Shapes: B batch, H heads, N tokens (prefix tokens first), D head width, gh x gw token grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from timm.layers.attention import Attention
from timm.models import MaxxVit, VisionTransformer
from torch import Tensor, nn

from configs.base import ConfigError
from models.energy_maps import EnergyMaps, stage_names
from models.map_hooks import MapHooks, pick
from models.relative_attention import RelativeAttentionMaps

if TYPE_CHECKING:
    from typing_extensions import Self

Query = Literal["auto", "cls", "mean"]


class AttentionMaps(MapHooks):
    """What the pooled output of a timm VisionTransformer (hybrids too) attends to, in the blocks asked for.

    The row of the class token where the head reads it, else that of the mean query over patch tokens. The softmax runs
    over all tokens and is averaged over heads; then prefix tokens (class, registers) are removed and the rest is made
    to sum to 1.
    """

    kind = "attention"

    def __init__(self, model: nn.Module, layers: Sequence[int] = (-1,), *, query: Query = "auto") -> None:
        blocks = _attention_blocks(model)
        super().__init__(pick(blocks, layers, what="attention in layers"))
        self._model = cast(Any, model)
        self._use_cls = _reads_class_token(model) if query == "auto" else query == "cls"
        self._prefix = int(self._model.num_prefix_tokens)
        if self._use_cls and not self._model.has_class_token:
            raise ConfigError(
                "a class token's attention is asked for, but the model has none: use query 'mean'"
            )
        self._rows: dict[int, Tensor] = {}
        self._image_shape: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self._keep(self._model.patch_embed.register_forward_pre_hook(self._on_images))
        return super().__enter__()

    def _attach(self, index: int, module: nn.Module) -> None:
        attention: Any = module
        self._keep(attention.q_norm.register_forward_hook(partial(self._on_queries, index)))
        self._keep(attention.k_norm.register_forward_hook(partial(self._on_keys, index, attention.scale)))

    def _on_images(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._image_shape = (inputs[0].shape[-2], inputs[0].shape[-1])

    def _on_queries(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], q_BHND: Tensor) -> None:
        self._rows[index] = (
            q_BHND[:, :, 0].float() if self._use_cls else q_BHND[:, :, self._prefix :].float().mean(dim=2)
        )

    def _on_keys(
        self, index: int, scale: float, module: nn.Module, inputs: tuple[Tensor, ...], k_BHND: Tensor
    ) -> None:
        # Autocast would undo float32 in the product.
        with torch.autocast(k_BHND.device.type, enabled=False):
            q_BHD1 = self._rows.pop(index).unsqueeze(-1) * scale
            row_BN = (k_BHND.float() @ q_BHD1).squeeze(-1).softmax(dim=-1).mean(dim=1)
        patches = row_BN[:, self._prefix :]
        shares = patches / patches.sum(dim=1, keepdim=True)
        self._seen[index] = shares.reshape(-1, *self._grid(shares.shape[1]))

    def _grid(self, num_patches: int) -> tuple[int, int]:
        embed = self._model.patch_embed
        grid: tuple[int, int] | None = embed.grid_size
        if (grid is None or math.prod(grid) != num_patches) and self._image_shape is not None:
            grid = embed.dynamic_feat_size(self._image_shape)
        if grid is None or math.prod(grid) != num_patches:
            raise RuntimeError(
                f"{num_patches} patch tokens do not fill the grid {grid}: patch dropout is on; maps need eval mode"
            )
        return (int(grid[0]), int(grid[1]))


def open_maps(model: nn.Module, layers: Sequence[int]) -> MapHooks:
    """The maps a network has to offer: attention for a Transformer, the energy of stages for everything else."""
    if isinstance(model, (VisionTransformer, MaxxVit)):
        return open_attention(model, layers)
    return EnergyMaps(model, layers)


def open_attention(model: nn.Module, layers: Sequence[int]) -> MapHooks:
    """The attention maps of a Transformer; ConfigError for a network without attention over the whole image."""
    if isinstance(model, MaxxVit):
        return RelativeAttentionMaps(model, layers)
    return AttentionMaps(model, layers)


def _attention_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f"{type(model).__name__} has no attention row to show: a timm VisionTransformer or CoAtNet is needed; "
            f"its stages ({', '.join(stage_names(model)) or 'none'}) have energy maps"
        )
    found: list[tuple[str, nn.Module]] = [
        (name, module)
        for name, module in model.blocks.named_modules(prefix="blocks")
        if isinstance(module, Attention)
    ]
    if not found:
        kinds = sorted(
            {type(module).__name__ for module in model.blocks.modules() if "Att" in type(module).__name__}
        )
        raise ConfigError(
            f"no attention of timm's plain kind in the model's blocks; there is {', '.join(kinds) or 'none at all'}"
        )
    return found


def _reads_class_token(model: Any) -> bool:
    return model.global_pool == "token" and bool(model.has_class_token)
