"""Where the gates of a CNN look: what spatial attention lets through (CBAM), or what a context is pooled from (GC)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from timm.layers.cbam import LightSpatialAttn, SpatialAttn
from timm.layers.global_context import GlobalContext
from torch import Tensor, nn

from configs.base import ConfigError
from models.energy_maps import stage_names
from models.map_hooks import MapHooks, pick
from models.supernet import path_shape


class GateMaps(MapHooks):
    """The spatial gates of a network by index or module name: float32 [B, h, w].

    Of CBAM's spatial attention (Woo et al. 2018) the factors between 0 and 1, of global context (Cao et al. 2019) the
    softmax over places, which sums to 1.
    """

    kind = "gate"

    def __init__(self, model: nn.Module, gates: Sequence[int | str] = (-1,)) -> None:
        if path_shape(model):
            raise ConfigError(
                "a supernet's gates are candidates, of which one is active: look at a network that its recipe trained"
            )
        found = [(name, module) for name, module in model.named_modules() if _source(module) is not None]
        if not found:
            raise ConfigError(
                f"{type(model).__name__} has no gate over places (squeeze-and-excitation and ECA weigh channels); its "
                f"stages ({', '.join(stage_names(model)) or 'none'}) have energy maps"
            )
        super().__init__(pick(found, gates, what="gates"))

    def _attach(self, index: int, module: nn.Module) -> None:
        source = cast(nn.Module, _source(module))
        self._keep(source.register_forward_hook(partial(self._on_output, index)))

    def _on_output(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        gate_BHW = output.float().squeeze(1)
        if isinstance(self._modules[index], GlobalContext):
            gate_BHW = gate_BHW.flatten(1).softmax(dim=1).view_as(gate_BHW)
        self._seen[index] = gate_BHW


def _source(module: nn.Module) -> Any:
    """The part of a gate that puts out [B, 1, h, w]; None where there is none."""
    if isinstance(module, SpatialAttn | LightSpatialAttn):
        return module.gate
    return module.conv_attn if isinstance(module, GlobalContext) else None
