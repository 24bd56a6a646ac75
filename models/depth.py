"""Relative depth: how far through a network its modules end, so that layers of two networks can be matched."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def relative_depths(model: nn.Module, names: Sequence[str]) -> tuple[float, ...]:
    """For each module by name, which share of the layers with weights has come by its end, in the order in which the
    network lists them: of a ViT's block i of n about (i + 1) / n.
    """
    weighted = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    return tuple(_last_within(name, weighted) / len(weighted) for name in names)


def nearest_depths(wanted: Sequence[float], offered: Sequence[float]) -> tuple[int, ...]:
    """For each depth wanted the index of the nearest one offered; of two equally near the deeper."""
    return tuple(
        min(range(len(offered)), key=lambda index: (abs(offered[index] - depth), -offered[index]))
        for depth in wanted
    )


def _last_within(name: str, weighted: Sequence[str]) -> int:
    within = [
        number
        for number, layer in enumerate(weighted, start=1)
        if layer == name or layer.startswith(f"{name}.")
    ]
    return max(within, default=0)
