"""LoRA (Hu et al. 2022) on the projections of attention, by peft; merged, the network is timm's again.

    y = W x + (alpha / rank) B A x        W frozen, A and B trained, B begins at zero

Only importer of peft, which is an optional package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from models.attention import any_kernel, attention_layers

_ADAPTER = "default"


def add_lora(model: nn.Module, *, rank: int, alpha: float) -> set[str]:
    """Puts low-rank updates beside every linear projection of the model's attention, in place; gives their names.

    What was there is named ``....base_layer.weight`` until `merge_lora`. Raises ConfigError for a network without such
    projections, or whose attention reads their weights behind the update's back.
    """
    targets = _projections(model)
    peft = _import_peft()
    before = {name for name, _ in model.named_parameters()}
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    _check_reached(model, targets)
    added = {name for name, _ in model.named_parameters()} - before
    return {name for name in added if ".lora_" in name}


def merge_lora(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state dict of `model` with each update added to its projection, under timm's own names.

    `weights` come apart from the model, since under ZeRO 3, or with averaged weights, they are not what it
    holds. Without LoRA they are given back as they are.
    """
    merged = dict(weights)
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        down, up = (merged.pop(f"{name}.{part}.{_ADAPTER}.weight") for part in ("lora_A", "lora_B"))
        update = float(layer.scaling[_ADAPTER]) * (up @ down)
        merged[f"{name}.weight"] = merged.pop(f"{name}.base_layer.weight") + update
        if f"{name}.base_layer.bias" in merged:
            merged[f"{name}.bias"] = merged.pop(f"{name}.base_layer.bias")
    return merged


def _projections(model: Any) -> list[str]:
    """The linear layers right within the attention layers, by their whole names."""
    names = [
        f"{layer}.{name}"
        for layer, module in attention_layers(model).items()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    if not names:
        kinds = Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
        there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        raise ConfigError(
            f"mode.name is 'lora', but {model.pretrained_cfg['architecture']!r} has no attention layer with linear "
            f"projections (it is made of {there} ...): take mode.name linear_probe, last_blocks or full"
        )
    return names


@torch.no_grad()
def _check_reached(model: Any, targets: Sequence[str]) -> None:
    """One image through the model: some layers of timm use a projection's weight without calling the projection."""
    called: set[str] = set()
    was_training = model.training
    with ExitStack() as stack:
        stack.enter_context(any_kernel())
        for target in targets:
            hook = model.get_submodule(target).register_forward_hook(
                lambda module, inputs, output, name=target: called.add(name)
            )
            stack.callback(hook.remove)
        model.eval()(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    model.train(was_training)
    passed_over = [target for target in targets if target not in called]
    if passed_over:
        kind = type(model.get_submodule(passed_over[0].rpartition(".")[0])).__name__
        raise ConfigError(
            f"mode.name is 'lora', but the {kind} of {model.pretrained_cfg['architecture']!r} reads the weights of "
            f"{passed_over[0].rpartition('.')[2]!r} itself, where an update beside it would do nothing: take mode.name "
            "last_blocks or full"
        )


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"mode.name is 'lora', and the optional package peft is not there ({error}): pip install 'mirada[lora]'"
        ) from error
    return peft
