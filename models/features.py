"""Features of places: what the stages of a network put out, as [B, D, h, w] whatever they are made of.

Stages are those of timm's ``feature_info``: of a ViT its blocks, of a Swin and of a CNN its stages (the stem first).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.energy_maps import stages_of
from models.map_hooks import MapHooks, pick
from models.stage_places import StagePlaces
from models.token_merging import Tokens

if TYPE_CHECKING:
    from typing_extensions import Self


class Features(MapHooks):
    """The features of the stages asked for, by index or by module name; class and register tokens are left out."""

    kind = "features"

    def __init__(self, model: nn.Module, stages: Sequence[int | str] = (-1,)) -> None:
        super().__init__(pick(stages_of(model), stages, what="features in stages"))
        self._places = StagePlaces(model)

    def __enter__(self) -> Self:
        self._hooks.enter_context(self._places.listen())
        return super().__enter__()

    def _attach(self, index: int, module: nn.Module) -> None:
        self._keep(module.register_forward_hook(partial(self._on_output, index)))

    def _on_output(
        self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Tokens
    ) -> None:
        self._seen[index] = self._places.of(self.names[index], output)


@torch.no_grad()
def feature_widths(
    model: nn.Module, stages: Sequence[int | str], input_shape: tuple[int, int, int]
) -> tuple[int, ...]:
    """D of the stages asked for, found by one forward in evaluation mode; ConfigError for one that is not there."""
    features, was_training = Features(model, stages), model.training
    place = next(model.parameters())
    with features:
        model.eval()(torch.zeros(1, *input_shape, device=place.device))
    model.train(was_training)
    return tuple(found.shape[1] for found in features.take())
