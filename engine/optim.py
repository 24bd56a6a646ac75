"""The optimizer and its parameter groups: no decay on norms and biases, smaller rates towards the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.training import OptimConfig
from models.layer_order import layer_order


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters; `set_learning_rate` gives it its rate at each step."""
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups by layer and decay, each with ``lr_scale``; vectors and what the model names take no decay."""
    named_by_model: Any = getattr(model, "no_weight_decay", set)
    undecayed = set(named_by_model())
    layers = {} if config.layer_decay is None else layer_order(model)
    last_layer = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in undecayed
        layer = layers.get(name, last_layer)
        if (layer, decays) not in groups:
            groups[layer, decays] = {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": (config.layer_decay or 1.0) ** (last_layer - layer),
            }
        groups[layer, decays]["params"].append(parameter)
    return list(groups.values())


def set_learning_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """Gives each group the rate of this step times its own scale."""
    for group in groups:
        group["lr"] = rate * group["lr_scale"]
