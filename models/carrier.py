"""Carrier: a module around the networks that a run releases; what it holds beside them ends with the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """What is released beside the run's own network, in its folder: ``NAME.json`` and ``NAME.safetensors``."""

    name: str
    config: Mapping[str, Any]
    """What it is built from again."""
    weights: Mapping[str, Tensor]


class Carrier(nn.Module):
    """An encoder in a pretext task, a student with its projections, several students ..."""

    @property
    def networks(self) -> Mapping[str, str]:
        """Path of each network as a module, by the name it is released under; "" is the run's own."""
        raise NotImplementedError

    def companion(self, weights: Mapping[str, Tensor]) -> Companion | None:
        """What of a state dict of this module goes with the run's own network; None where nothing does."""
        return None


def main_network(module: nn.Module) -> nn.Module:
    """The network that a recipe's `model` section describes; of a module that carries none, the module itself."""
    return module.get_submodule(module.networks[""]) if isinstance(module, Carrier) else module


def path_within(module: nn.Module, path: str) -> str:
    """The path of the network that the module at `path` carries, or of that module where it carries none."""
    return f"{path}.{module.networks['']}" if isinstance(module, Carrier) else path


def released_parts(
    module: nn.Module, weights: Mapping[str, Tensor]
) -> dict[str, tuple[nn.Module, Mapping[str, Tensor]]]:
    """What of a trained module, and of its state dict, is released: each network with its weights, by name."""
    if not isinstance(module, Carrier):
        return {"": (module, weights)}
    return {
        name: (module.get_submodule(path), _below(path, weights)) for name, path in module.networks.items()
    }


def companion_of(module: nn.Module, weights: Mapping[str, Tensor]) -> Companion | None:
    """What goes with the network that a trained module releases as its run's own."""
    return module.companion(weights) if isinstance(module, Carrier) else None


def without_classifier(model: Any) -> Any:
    """The network in place, with pooled features for logits; its ``pretrained_cfg`` says so too."""
    model.reset_classifier(0)
    model.pretrained_cfg["num_classes"] = 0
    return model


def _below(path: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{path}."
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
