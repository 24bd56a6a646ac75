"""Apprentice and Classroom: a student with what it learns by beside itself, and several students at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.carrier import Carrier, path_within
from models.features import Features


class Apprentice(Carrier):
    """A student and the 1 x 1 projections of its features that a loss compares with its teacher's tokens.

    It gives the student's logits. In training each projection runs in the same call, so that ZeRO gathers its weights
    and autocast casts them; `models.map_hooks.Outputs` sees what it puts out.
    """

    def __init__(
        self, student: nn.Module, stages: Sequence[int], *, widths: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(nn.Conv2d(ours, theirs, 1) for ours, theirs in widths)
        self._features = Features(student, stages)

    @property
    def networks(self) -> Mapping[str, str]:
        return {"": "student"}

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            logits: Tensor = self.student(images)
            return logits
        with self._features:
            logits = self.student(images)
        for projection, features in zip(self.projections, self._features.take(), strict=True):
            projection(features)
        return logits


class Classroom(Carrier):
    """Several students on the same images; it gives the logits of the first, and hooks see those of the others."""

    def __init__(self, students: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(students)
        self.students = nn.ModuleList(students.values())

    @property
    def networks(self) -> Mapping[str, str]:
        return {
            name: path_within(student, f"students.{index}")
            for index, (name, student) in enumerate(zip(self.names, self.students, strict=True))
        }

    def forward(self, images: Tensor) -> Tensor:
        first, *others = self.students
        logits: Tensor = first(images)
        for student in others:
            student(images)
        return logits


def students_of(module: nn.Module) -> dict[str, nn.Module]:
    """The students in a module by name, each with what it learns by; "" is the run's own."""
    if isinstance(module, Classroom):
        return dict(zip(module.names, module.students, strict=True))
    return {"": module}


def logits_of_all(module: nn.Module, images: Tensor) -> Tensor:
    """[students x B, classes]: what a loss over all students is made of."""
    return torch.cat([student(images) for student in students_of(module).values()])
