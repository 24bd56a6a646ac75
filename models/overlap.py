"""How far two maps of the same image agree: correlation, and pointing. Maps are [B, h, w] of any two grids."""

from __future__ import annotations

from torch import Tensor

from models.distill_losses import correlation
from models.map_grid import on_one_grid

TOP_SHARE = 0.25
"""Of the places: the region that pointing has to hit, and what a student that points anywhere hits by chance."""


def map_correlation(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """[B]: Pearson's r over places, -1 to 1; 0 where a map is flat."""
    student, teacher = (found.flatten(1) for found in on_one_grid(student_map, teacher_map))
    return correlation(student, teacher, dim=1)


def map_pointing(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """[B], 1 or 0: whether the student's highest place is among the quarter of places where the teacher's are highest.

    The pointing game of Zhang et al. 2018 (arXiv:1608.00507), with the teacher's region in place of an object's.
    """
    student, teacher = (found.flatten(1) for found in on_one_grid(student_map, teacher_map))
    size = max(1, round(TOP_SHARE * teacher.shape[1]))
    least = teacher.topk(size, dim=1).values[:, -1:]
    at_peak = teacher.gather(1, student.argmax(dim=1, keepdim=True))
    return (at_peak >= least).squeeze(1).float()
