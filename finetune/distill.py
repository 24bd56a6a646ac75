r"""DistillObjective: one pass of the teacher, and of each student, for losses that are weighed and added.

batch -> teacher -> logits, maps, tokens ---+
     \-> student -> logits, maps, features -+-> task + logits + attention + features -> Loss
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from configs.base import ConfigError, Duration
from configs.fade import Fade
from configs.teacher import TeacherConfig
from data_pipeline.batch import Batch, normalize
from data_pipeline.mix import mix_images
from engine.objective import Loss
from finetune.lesson import Lesson
from finetune.teacher import Observer
from finetune.weights import LossWeights, Steps
from models.apprentice import students_of
from models.map_hooks import Outputs


class DistillObjective:
    """Learning from labels and, where there is one, from a teacher: an engine Objective.

    `student` is the network itself, or an Apprentice or Classroom around it, on which hooks live during a call; what is
    called is the engine's wrapper around it. Of several students the parts of all but the first are logged as
    ``NAME/task``, and their sum as ``NAME/loss``. A teacher that no loss needs is not called.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        task_weight: float = 1.0,
        task_fade: Fade | None = None,
        label_fraction: float = 1.0,
        label_smoothing: float = 0.0,
        teacher: Observer | None = None,
        losses: TeacherConfig | None = None,
        steps: Steps | None = None,
    ) -> None:
        if (teacher is None) != (losses is None):
            raise ConfigError("a teacher and its losses come together: give both or neither")
        self._mean, self._std = tuple(mean), tuple(std)
        self._weights = _weights(task_weight, task_fade, losses, steps)
        self._lessons = {
            name: Lesson(
                network,
                losses,
                weights=self._weights,
                teacher=teacher,
                label_fraction=label_fraction,
                label_smoothing=label_smoothing,
            )
            for name, network in students_of(student).items()
        }
        self._others = Outputs([pair for pair in students_of(student).items() if pair[0] != ""])
        needed = any(lesson.needs_teacher for lesson in self._lessons.values())
        self._teacher = teacher if needed else None

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        told = None if self._teacher is None else self._teacher.observe(batch)
        inputs = mix_images(normalize(batch.images, self._mean, self._std), batch.mix)
        with ExitStack() as watching:
            watching.enter_context(self._others)
            for lesson in self._lessons.values():
                watching.enter_context(lesson)
            first: Tensor = model(inputs)
        logits = dict(zip(self._lessons, (first, *self._others.take()), strict=True))
        losses = {name: lesson.loss(logits[name], batch, told) for name, lesson in self._lessons.items()}
        if len(losses) == 1:
            return losses[""]
        return Loss(
            total=torch.stack([loss.total for loss in losses.values()]).sum(),
            parts={
                part: value for name, loss in losses.items() for part, value in _named(name, loss).items()
            },
        )

    def follow(self, step: int) -> None:
        """From now on it is optimizer step `step` (from 0), and weights are what they are then."""
        self._weights.follow(step)


def _weights(
    task_weight: float, task_fade: Fade | None, losses: TeacherConfig | None, steps: Steps | None
) -> LossWeights:
    given = {} if losses is None else losses.losses
    of_teacher = {name: (loss.weight, loss.fade) for name, loss in given.items()}
    return LossWeights({"task": (task_weight, task_fade), **of_teacher}, steps=steps or _no_steps)


def _no_steps(duration: Duration) -> int:
    raise ConfigError(f"a weight fades over '{duration}': say how many steps that is")


def _named(name: str, loss: Loss) -> Mapping[str, Tensor]:
    if name == "":
        return loss.parts
    return {f"{name}/loss": loss.total, **{f"{name}/{part}": value for part, value in loss.parts.items()}}
