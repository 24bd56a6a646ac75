"""Penalties on attention that dwells on a few places: terms of the loss.

The L1 norm of a softmax row is 1 whatever the row is, so its gradient is zero. What has a gradient, for rows a over n
keys with entropy H(a), and for gates g, which are not normalized:

    uniform         mean of sum_j |a_j - 1/n|: the L1 distance to the row that looks everywhere alike
    entropy         mean of max(0, floor - H(a) / log n): costs only rows below a part of the greatest entropy
    head_diversity  mean cosine between the rows of two heads (Li et al. 2018, disagreement on attended positions)
    gate_l1         mean |g|

Each is the mean over the layers that ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from configs.attention import PenaltyConfig
from configs.base import ConfigError
from models.attention_rows import Rows, has_rows, watch_rows
from models.gates import gate_values
from models.progressive import switched_layers

_FLOOR = 0.5
_QUERIES = 32


class AttentionPenalties:
    """Watches the attention of a network while it trains, and says what it costs."""

    def __init__(self, model: nn.Module, penalties: Sequence[PenaltyConfig]) -> None:
        check_penalties(model, penalties)
        self._weights: dict[str, float] = {penalty.name: penalty.weight for penalty in penalties}
        self._seen: dict[str, list[Tensor]] = {}
        self._collected: dict[str, list[Tensor]] = {}
        for penalty in penalties:
            if penalty.name == "gate_l1":
                for gate in gate_values(model):
                    gate.register_forward_hook(self._on_gate)
            else:
                on_rows = partial(self._on_rows, penalty.name, _FUNCTIONS[penalty.name](penalty))
                for layer in _row_layers(model):
                    watch_rows(layer, on_rows, max_rows=penalty.queries or _QUERIES)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collects what the forward within costs."""
        self._seen = {name: [] for name in self._weights}
        try:
            yield
        finally:
            self._collected, self._seen = self._seen, {}

    def take(self) -> dict[str, Tensor]:
        """Each penalty by name, without its weight: a scalar in float32."""
        unseen = [name for name, values in self._collected.items() if not values]
        if unseen:
            raise RuntimeError(
                f"no layer was seen for {', '.join(unseen)}: the network did not run, or was not in training mode"
            )
        found = {name: torch.stack(values).mean() for name, values in self._collected.items()}
        self._collected = {}
        lost = [name for name, value in found.items() if not value.requires_grad]
        if lost:
            raise RuntimeError(f"{', '.join(lost)} came without a gradient: the network ran under no_grad")
        return found

    def weighted(self, found: dict[str, Tensor]) -> Tensor:
        """What `take` gave, summed with the weights of the recipe."""
        return torch.stack([self._weights[name] * value for name, value in found.items()]).sum()

    def _on_rows(self, name: str, cost: Callable[[Rows], Tensor], rows: Rows) -> None:
        # NOTE: also computed when nothing collects it: a layer that is run again in the backward pass (activation
        # checkpointing) must do what it did before.
        value = cost(rows)
        if name in self._seen:
            self._seen[name].append(value)

    def _on_gate(self, module: nn.Module, inputs: tuple[Tensor, ...], gate: Tensor) -> None:
        if module.training:
            value = gate.float().abs().mean()
            if "gate_l1" in self._seen:
                self._seen["gate_l1"].append(value)


def check_penalties(model: nn.Module, penalties: Sequence[PenaltyConfig]) -> None:
    """Raises ConfigError with a line for each penalty on what the network does not have."""
    mistakes = []
    layers, kind = _row_layers(model), type(model).__name__
    for penalty in penalties:
        where = f"model.attention.regularize: {penalty.name!r}"
        if penalty.name == "gate_l1":
            if not gate_values(model):
                mistakes.append(
                    f"{where} is of gates, and {kind} has none; set model.attention.gates (se, cbam ...), take an "
                    "EfficientNet, or leave it out"
                )
        elif not layers:
            mistakes.append(
                f"{where} is of softmax attention, and {kind} has none that can be watched; timm's ViT and Swin (v1) "
                "have, and ResNets with gates mhsa or window; leave it out"
            )
        elif penalty.name == "head_diversity" and any(layer.num_heads < 2 for layer in layers):
            mistakes.append(f"{where} compares heads, and a layer of the network has only one; leave it out")
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def check_beginning(model: nn.Module, penalties: Sequence[PenaltyConfig], *, start: int) -> None:
    """Raises ConfigError with a line for each penalty whose layers are all off while only the first `start` are on."""
    switched = [set(layer.modules()) for layer in switched_layers(model)]
    mistakes = []
    for penalty in penalties:
        watched = set(gate_values(model) if penalty.name == "gate_l1" else _row_layers(model))
        always_on = watched.difference(*switched)
        first = next((number for number, within in enumerate(switched, start=1) if within & watched), 0)
        if first > start and not always_on:
            mistakes.append(
                f"model.attention.regularize: {penalty.name!r} needs a layer to look at from the beginning, and the "
                f"first of its kind is number {first} of {len(switched)} that are switched on, while "
                f"model.attention.progressive.start is {start}: set that to {first} or more, or leave one of them out"
            )
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def uniform_distance(rows: Rows) -> Tensor:
    """Mean L1 distance to uniform rows, 0 to 2."""
    even = rows.allowed / rows.num_keys.unsqueeze(-1)
    return (rows.shares - even).abs().sum(dim=-1).mean()


def entropy_shortfall(rows: Rows, *, floor: float) -> Tensor:
    """Mean of what rows lack to `floor` times the greatest entropy, in units of it, 0 to `floor`."""
    entropy = -(rows.shares * rows.shares.clamp_min(torch.finfo(torch.float32).tiny).log()).sum(dim=-1)
    # A row with one key has no entropy to lose.
    greatest = rows.num_keys.clamp_min(2.0).log()
    return ((floor - entropy / greatest).clamp_min(0.0) * (rows.num_keys > 1)).mean()


def head_likeness(rows: Rows) -> Tensor:
    """Mean cosine between the rows of two different heads for the same query, 0 to 1."""
    units = nn.functional.normalize(rows.shares, dim=-1)
    num_heads = units.shape[1]
    # The square of the sum over heads is the sum over all pairs, in which that of a head with itself is 1.
    all_pairs = units.sum(dim=1).square().sum(dim=-1)
    return ((all_pairs - num_heads) / (num_heads * (num_heads - 1))).mean()


_FUNCTIONS: dict[str, Callable[[PenaltyConfig], Callable[[Rows], Tensor]]] = {
    "uniform": lambda penalty: uniform_distance,
    "entropy": lambda penalty: partial(entropy_shortfall, floor=penalty.floor or _FLOOR),
    "head_diversity": lambda penalty: head_likeness,
}


def _row_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if has_rows(module)]
