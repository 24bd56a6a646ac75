"""Penalized: any objective, with the penalties of `model.attention.regularize` added to what it minimises."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from configs.attention import PenaltyConfig
from data_pipeline.batch import Batch
from engine.objective import Loss, Objective, look_ahead
from models.regularizers import AttentionPenalties


class Penalized:
    """The objective's loss plus weighted penalties on the attention of the network that it calls.

    `network` is the network itself, on which the hooks live; what is called is the engine's wrapper around it. The
    penalties are logged without their weights, as ``attention_entropy`` and so on.
    """

    def __init__(self, objective: Objective, network: nn.Module, penalties: Sequence[PenaltyConfig]) -> None:
        self._objective = objective
        self._penalties = AttentionPenalties(network, penalties)

    def look_ahead(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """For the objective within."""
        look_ahead(self._objective, model, micro_batches)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        with self._penalties.watching():
            loss = self._objective(model, batch)
        found = self._penalties.take()
        parts = {f"attention_{name}": value for name, value in found.items()}
        return Loss(
            total=loss.total + self._penalties.weighted(found),
            parts={**(loss.parts or {"task": loss.total}), **parts},
        )
