"""Objective: what a run minimises, as a function of the model and a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from data_pipeline.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is minimised, and what it is made of."""

    total: Tensor
    """Scalar with gradient: a mean over the micro-batch, so that micro-batches and ranks average to the batch's."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars to log beside it, detached by the trainer: ``{"task": ..., "attention": ...}``."""


class Objective(Protocol):
    """Supervised learning, distillation ...: calls the model once on the micro-batch and returns its loss.

    `model` is the engine's wrapper around the network: calling it applies autocast, so logits may be bf16 and
    losses belong in fp32 (``logits.float()``).
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Loss: ...


@runtime_checkable
class LooksAhead(Protocol):
    """An objective whose loss of a micro-batch depends on the others of the step, on all ranks."""

    def look_ahead(self, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
        """What this rank will be called with in this step, in order, on the host; all ranks together."""


def look_ahead(objective: Objective, model: nn.Module, micro_batches: Sequence[Batch]) -> None:
    """Shows a step's micro-batches to an objective that wants to see them."""
    if isinstance(objective, LooksAhead):
        objective.look_ahead(model, micro_batches)
