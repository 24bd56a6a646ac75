"""Which weights are trained: the classifier, or the last blocks; the others are frozen, and so are their statistics."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from timm.layers.norm_act import freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from configs.base import ConfigError
from models.layer_order import layer_order


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Freezes all weights but these, and the running statistics of batch norm among what is frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    _hold_statistics(model)


def head_weights(model: Any) -> set[str]:
    """The weights of the classifier by name."""
    listed = model.pretrained_cfg.get("classifier") or ()
    layers = (listed,) if isinstance(listed, str) else listed
    names = {
        name for name, _ in model.named_parameters() if any(name.startswith(f"{layer}.") for layer in layers)
    }
    if not names:
        raise ConfigError(
            f"{model.pretrained_cfg['architecture']!r} has no classifier of its own that could be trained alone"
        )
    return names


def last_block_weights(model: Any, count: int) -> set[str]:
    """The weights of the last `count` blocks and of all that comes behind them, the classifier among it.

    A block is a layer of timm's own order that has matrices and is neither the stem nor the classifier.
    """
    layers = layer_order(model, wanted_by="mode.name: last_blocks")
    head = head_weights(model)
    matrices = [name for name, weight in model.named_parameters() if weight.ndim > 1 and name not in head]
    blocks = sorted({layers[name] for name in matrices} - {0})
    if count > len(blocks):
        raise ConfigError(
            f"mode.count is {count}, but {model.pretrained_cfg['architecture']!r} has {len(blocks)} blocks behind its "
            "stem: give a smaller one, or take mode.name: full"
        )
    return {name for name, layer in layers.items() if layer >= blocks[-count]}


def count_trained(model: nn.Module) -> tuple[int, int]:
    """How many numbers are trained, and of how many; of a model that is not sharded yet."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _hold_statistics(module: nn.Module) -> None:
    for name, child in module.named_children():
        frozen = not any(parameter.requires_grad for parameter in child.parameters())
        if isinstance(child, _BatchNorm) and frozen:
            held: Any = freeze_batch_norm_2d(child)
            if held is child:
                raise ConfigError(
                    f"the statistics of a {type(child).__name__} cannot be held while others train: take mode.name: "
                    "full"
                )
            setattr(module, name, held)
        else:
            _hold_statistics(child)
