"""The optimizer and its parameter groups: no decay on norms and biases, smaller rates towards the input.

ZeRO 1 to 3 hand an optimizer flat pieces of several tensors. AdamW and Lion work element by element and do not notice;
for Muon DeepSpeed gathers whole matrices; LAMB would be wrong, and configs/training.py refuses it there.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import lamb, lion
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.training import OptimConfig
from models.layer_order import layer_order

_MUON_RMS = 0.2
"""Root mean square of an AdamW update, to which Muon's are scaled (Liu et al. 2025, Muon is scalable)."""


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, muon: Callable[[], type[Optimizer]]
) -> Optimizer:
    """The optimizer over the model's trainable parameters; `set_learning_rate` gives it its rate at each step.

    `muon` imports DeepSpeed's Muon, which knows about shards. All have the hook that GradScaler uses: with `found_inf`
    set to 1 a step leaves everything as it was.
    """
    groups = parameter_groups(model, config)
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        case "lion":
            return Lion(groups, lr=config.lr, betas=config.betas)
        case "lamb":
            return Lamb(groups, lr=config.lr, betas=config.betas, max_grad_norm=None)
        case "muon":
            for group in groups:
                for parameter in group["params"]:
                    parameter.use_muon = group["use_muon"]  # where DeepSpeed's ZeRO looks
            skipping: Callable[..., Optimizer] = type("Muon", (_Skipping, muon()), {})
            return skipping(groups)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups by layer and decay, each with ``lr_scale``; vectors, biases and what the model names take no decay.

    Muon's matrices are grouped by their width too: see `_muon_group`.
    """
    undecayed = _named_by_model(model)
    layers = {} if config.layer_decay is None else layer_order(model)
    last_layer = max(layers.values(), default=0)
    groups: dict[tuple[int, bool, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        decays = decays and not any(fnmatch(name, pattern) for pattern in undecayed)
        layer = layers.get(name, last_layer)
        columns = parameter.shape[1] if decays and _is_hidden_matrix(name, parameter) else 0
        key = (layer, decays, columns if config.name == "muon" else 0)
        if key not in groups:
            groups[key] = {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": (config.layer_decay or 1.0) ** (last_layer - layer),
            }
            if config.name == "muon":
                groups[key].update(_muon_group(config, groups[key], columns))
        groups[key]["params"].append(parameter)
    return list(groups.values())


def set_learning_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """Gives each group the rate of this step times its own scale."""
    for group in groups:
        group["lr"] = rate * group["lr_scale"]


class _Skipping(Optimizer):
    """Gives an optimizer the hook of fused AdamW. NOTE: waits for the device where the hook is used (ZeRO stage 0)."""

    found_inf: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        if self.found_inf is not None and self.found_inf.item():
            return None
        return super().step(closure)


class Lion(_Skipping, lion.Lion):
    """Lion (Chen et al. 2023) as in timm."""


class Lamb(_Skipping, lamb.Lamb):
    """LAMB (You et al. 2020) as in timm: what takes no decay is not scaled by a trust ratio."""


def _named_by_model(model: nn.Module) -> set[str]:
    """Names (or patterns) that the model, or a model within it, keeps free of decay."""
    named: set[str] = set()
    for prefix, module in model.named_modules():
        listed: Any = getattr(module, "no_weight_decay", None)
        if listed is not None:
            named.update(f"{prefix}.{name}" if prefix else name for name in listed())
    return named


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is made for it: a matrix between features, not an embedding, a head or a convolution."""
    return parameter.ndim == 2 and not any(word in name.lower() for word in ("embed", "head", "token"))


def _muon_group(config: OptimConfig, group: dict[str, Any], columns: int) -> dict[str, Any]:
    """Muon's settings for matrices of so many columns, or AdamW's within Muon where there are none.

    DeepSpeed's update of a matrix [rows, columns] is near-orthogonal times sqrt(max(1, rows / columns)). One rate and
    one decay serve both halves when it is scaled to the size of an AdamW update, 0.2 sqrt(max(rows, columns)) times an
    orthogonal matrix: that is 0.2 sqrt(columns) more, whatever the rows. The decay must not grow with it.
    """
    if not columns:
        return {"use_muon": False, "lr": config.lr, "betas": config.betas, "eps": 1e-8}
    scale = _MUON_RMS * columns**0.5
    return {
        "use_muon": True,
        "lr": config.lr,
        "momentum": config.momentum,
        "lr_scale": group["lr_scale"] * scale,
        "weight_decay": group["weight_decay"] / scale,
    }
