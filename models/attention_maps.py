"""Where a network looks, by one call on any network of timm or ours; fused kernels stay on.

    (last,) = look(model, images)                      # float32 [B, gh, gw]
    with open_maps(vit, layers=(-1,)) as maps:         # the same around a forward of one's own, gradients included
        logits = vit(images)
    (last,) = maps.take()

What there is, the first of a network being what ``auto`` takes:

| network | of | the map | cost beside the forward |
| --- | --- | --- | --- |
| ViT | row | what the class token, else the mean query, attends to | O(N D) a layer |
| ViT | column_mass | the mean attention each token receives | O(N^2 D) a layer |
| ViT | rollout | the row, rolled out down to the first layer | O(N^2 D) times layers |
| Swin | column_mass | the same within windows, put together | O(N n D) a layer |
| CoAtNet | column_mass | the same with relative positions | O(N^2 D) a layer |
| CNN, Swin | energy | mean square of a stage's channels | O(N D) a stage |
| CNN with CBAM or GC | gate | its spatial gates | none |

Maps of attention leave prefix tokens (class, registers) out and sum to 1. None forms an N x N tensor, and neither does
its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from timm.models import MaxxVit, SwinTransformer, SwinTransformerV2, VisionTransformer
from timm.models.eva import Eva
from torch import Tensor, nn

from configs.base import ConfigError
from models.energy_maps import EnergyMaps
from models.gate_maps import GateMaps
from models.map_hooks import MapHooks
from models.relative_attention import RelativeAttentionMaps
from models.swin_maps import SwinMaps
from models.vit_maps import AttentionMaps, ColumnMassMaps, RolloutMaps

Of = Literal["auto", "row", "column_mass", "rollout", "gate", "energy"]

_Maker = Callable[[nn.Module, Sequence[int]], MapHooks]

_VIT: dict[str, _Maker] = {"row": AttentionMaps, "column_mass": ColumnMassMaps, "rollout": RolloutMaps}
_ATTENTION: tuple[tuple[tuple[type[nn.Module], ...], dict[str, _Maker]], ...] = (
    ((VisionTransformer, Eva), _VIT),
    ((SwinTransformer, SwinTransformerV2), {"column_mass": SwinMaps}),
    ((MaxxVit,), {"column_mass": RelativeAttentionMaps}),
)
"""By the first class that a network is of: the first of its maps is what ``auto`` takes."""
_ANY: dict[str, _Maker] = {"energy": EnergyMaps, "gate": GateMaps}


@torch.no_grad()
def look(
    model: nn.Module, images: Tensor, *, layers: Sequence[int] = (-1,), of: Of = "auto"
) -> tuple[Tensor, ...]:
    """One map [B, h, w] for each layer asked for, from normalized images [B, C, H, W], in evaluation mode.

    Raises ConfigError where the network has no such map or layer.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with open_maps(model.eval(), layers, of=of) as maps:
            model(images)
    finally:
        for module, was_training in modes:  # one by one: parts of a network may be frozen in evaluation mode
            module.training = was_training
    return maps.take()


def open_maps(model: nn.Module, layers: Sequence[int], *, of: Of = "auto") -> MapHooks:
    """Maps of a forward within a `with` block; ``auto``: attention where it is over the image, else energy."""
    attention = _attention_of(model)
    if of == "auto":
        return next(iter((attention or _ANY).values()))(model, layers)
    offered = attention | _ANY
    if of not in offered:
        raise ConfigError(
            f"{type(model).__name__} has no map of {of!r}; it may have {', '.join(map(repr, offered))}"
        )
    return offered[of](model, layers)


def open_attention(model: nn.Module, layers: Sequence[int]) -> MapHooks:
    """The attention maps of a Transformer; ConfigError for a network without attention over the whole image."""
    if not _attention_of(model):
        return AttentionMaps(model, layers)  # says what there is instead
    return open_maps(model, layers)


def _attention_of(model: nn.Module) -> dict[str, _Maker]:
    return next((maps for kinds, maps in _ATTENTION if isinstance(model, kinds)), {})
