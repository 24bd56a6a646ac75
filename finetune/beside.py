"""What an evaluation of a distillation measures beside the scores: overlap of maps, and scores of further students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from configs.teacher import OverlapConfig
from data_pipeline.batch import Batch
from engine.results.beside import Several
from engine.results.evaluate import Beside, Tally
from engine.world import World
from finetune.config import FinetuneConfig
from finetune.ensemble import as_one
from finetune.teacher import Observer, Teacher
from models.apprentice import students_of
from models.attention_maps import open_maps
from models.carrier import main_network
from models.map_hooks import Outputs
from models.overlap import map_correlation, map_pointing


class Overlap:
    """``map_correlation`` and ``map_pointing`` of a student's map and its teacher's, means over images.

    `teacher` shows one map. Images without weight do not count.
    """

    def __init__(self, student: nn.Module, teacher: Observer, config: OverlapConfig, world: World) -> None:
        try:
            self._maps = open_maps(student, (config.student_stage,))
        except ConfigError as error:
            raise ConfigError(f"teacher.overlap.student_stage: {error}") from error
        self._teacher = teacher
        self._world = world
        self.begin()

    def begin(self) -> None:
        """An evaluation begins."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._world.device)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Around the student's forward of a batch."""
        with self._maps:
            yield
        (ours,), (theirs,) = self._maps.take(), self._teacher.observe(batch).attention
        weights = batch.weights.double()
        found = (map_correlation(ours, theirs), map_pointing(ours, theirs))
        self._sums += torch.stack([weights.sum(), *(_weighted(weights, values) for values in found)])

    def values(self) -> Mapping[str, float]:
        """Means over the images of all ranks; all ranks together."""
        count, correlation, pointing = self._world.sum(self._sums).tolist()
        return {"map_correlation": correlation / count, "map_pointing": pointing / count}


class FurtherStudents:
    """``NAME/top1`` and so on of the students that are trained beside the run's own."""

    def __init__(self, students: Mapping[str, nn.Module], world: World) -> None:
        self._names = tuple(students)
        self._logits = Outputs(list(students.items()))
        self._world = world
        self.begin()

    def begin(self) -> None:
        """An evaluation begins."""
        self._tallies = [Tally(self._world) for _ in self._names]

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Around the forward of all students."""
        with self._logits:
            yield
        for tally, logits in zip(self._tallies, self._logits.take(), strict=True):
            tally.add(logits.float(), batch)

    def values(self) -> Mapping[str, float]:
        """Scores of all ranks' images; all ranks together."""
        found: dict[str, float] = {}
        for name, tally in zip(self._names, self._tallies, strict=True):
            scores = tally.scores()
            found |= {f"{name}/{key}": getattr(scores, key) for key in ("top1", "top5", "ece", "loss")}
        return found


def watch_evaluation(
    module: nn.Module, config: FinetuneConfig, teachers: Sequence[Teacher], world: World
) -> Beside | None:
    """What an evaluation of a trained module measures beside its scores; None where it is nothing."""
    members: list[Beside] = []
    students = students_of(module)
    wanted = None if config.teacher is None else config.teacher.overlap
    if wanted is not None:
        shown = as_one([teacher.showing(attention_layers=(wanted.teacher_layer,)) for teacher in teachers])
        if shown is not None:
            members.append(Overlap(main_network(students[""]), shown, wanted, world))
    others = {name: student for name, student in students.items() if name}
    if others:
        members.append(FurtherStudents(others, world))
    return Several(members) if members else None


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """A sum in which an image without weight may be anything."""
    return torch.where(weights > 0, weights * values.double(), torch.zeros_like(weights)).sum()
