"""Ensemble: several teachers as one: probabilities and maps are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from finetune.config import FinetuneConfig
from finetune.teacher import Teacher, TeacherOutput, load_teacher
from models.map_grid import on_one_grid


class Ensemble:
    """Answers as a teacher does; its logits are logarithms of mean probabilities, so that their softmax is the mean.

    Maps are averaged layer by layer, where grids differ on the coarsest. Depths are those of the first teacher.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self._teachers = tuple(teachers)

    def observe(self, batch: Batch) -> TeacherOutput:
        """What they say about a batch on average."""
        told = [teacher.observe(batch) for teacher in self._teachers]
        logs = torch.stack([one.logits.log_softmax(dim=1) for one in told])
        return TeacherOutput(
            logits=logs.logsumexp(dim=0) - math.log(len(told)),
            attention=tuple(_mean_map(maps) for maps in zip(*(one.attention for one in told), strict=True)),
        )

    @property
    def attention_depths(self) -> tuple[float, ...]:
        """How far through the first network each layer is whose attention is asked for, 0 to 1."""
        return self._teachers[0].attention_depths

    @property
    def token_depths(self) -> tuple[float, ...]:
        """None: features of several teachers have no mean."""
        return ()


def load_teachers(
    config: FinetuneConfig, *, class_names: Sequence[str], device: torch.device | str
) -> list[Teacher]:
    """The teachers of a recipe, showing what its losses ask for, checked against the classes of its data."""
    if config.teacher is None:
        return []
    return [
        load_teacher(
            reference,
            num_classes=len(class_names),
            class_names=class_names,
            attention_layers=config.teacher.attention_layers,
            token_layers=config.teacher.token_layers,
            by_head=config.teacher.by_head,
            device=device,
            precision=config.teacher.precision or config.train.precision,
        )
        for reference in (config.teacher.checkpoint, *config.teacher.ensemble)
    ]


def as_one(teachers: Sequence[Teacher]) -> Teacher | Ensemble | None:
    """Who answers for all of them; None where there is none."""
    if len(teachers) > 1:
        return Ensemble(teachers)
    return teachers[0] if teachers else None


def _mean_map(maps: Sequence[Tensor]) -> Tensor:
    """[B, h, w] that sums to 1, from maps that do."""
    mean = torch.stack(on_one_grid(*maps)).mean(dim=0)
    return mean / mean.sum(dim=(1, 2), keepdim=True)
