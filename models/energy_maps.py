"""Where a stage looks: the energy of a stage's activations (Zagoruyko & Komodakis 2017), one map per image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from models.map_hooks import MapHooks, pick
from models.stage_places import StagePlaces
from models.token_merging import Tokens

if TYPE_CHECKING:
    from typing_extensions import Self


class EnergyMaps(MapHooks):
    """Mean over channels of the squared activations a stage puts out: float32 [B, h, w], not normalised.

    Stages are those of timm's ``feature_info`` (CNNs: the stem first; Swin: its stages; ViT: its blocks), by index
    or by module name.
    """

    kind = "energy"

    def __init__(self, model: nn.Module, stages: Sequence[int | str] = (-1,)) -> None:
        super().__init__(pick(stages_of(model), stages, what="stages"))
        self._places = StagePlaces(model)

    def __enter__(self) -> Self:
        self._hooks.enter_context(self._places.listen())
        return super().__enter__()

    def _attach(self, index: int, module: nn.Module) -> None:
        self._keep(module.register_forward_hook(partial(self._on_output, index)))

    def _on_output(
        self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Tokens
    ) -> None:
        self._seen[index] = self._places.of(self.names[index], output).float().square().mean(dim=1)


def stage_names(model: nn.Module) -> tuple[str, ...]:
    """The stages EnergyMaps can show, from the input to the output."""
    return tuple(name for name, _ in stages_of(model))


def stages_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The stages that timm lists for a network and that are modules of it, by name."""
    listed: Any = getattr(model, "feature_info", None) or ()
    modules = dict(model.named_modules())
    return [(stage["module"], modules[stage["module"]]) for stage in listed if stage["module"] in modules]


def energy_of_groups(features_BCHW: Tensor, groups: int) -> Tensor:
    """float32 [B, groups, h, w]: the energy of as many groups of neighbouring channels, as equal as they can be."""
    if features_BCHW.shape[1] < groups:
        raise ConfigError(f"a stage of {features_BCHW.shape[1]} channels cannot be cut into {groups} groups")
    parts = features_BCHW.float().square().tensor_split(groups, dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1)
