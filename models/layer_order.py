"""Which layer of a timm model each parameter belongs to, from the input to the head."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from configs.base import ConfigError
from models.carrier import Carrier


def layer_order(model: nn.Module, *, wanted_by: str = "optim.layer_decay") -> dict[str, int]:
    """Layer number of each parameter by name, 0 next to the input, as the model's own grouping has it.

    Of a module that carries a network it is the network's. `wanted_by` is the setting that an error names.
    """
    if isinstance(model, Carrier):
        path = model.networks[""]
        inner = layer_order(model.get_submodule(path), wanted_by=wanted_by)
        return {f"{path}.{name}": layer for name, layer in inner.items()}
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ConfigError(
            f"{wanted_by}: {type(model).__name__} does not say how its layers are ordered; leave it out"
        )
    order = group_parameters(model, matcher(coarse=False), reverse=True)
    layers = {str(name): int(layer) for name, layer in order.items()}
    # timm's ResNets know no weights behind the activation of their stem, where a gate may stand (models/gates.py).
    return {name: 0 if name.startswith("act1.") else layer for name, layer in layers.items()}
