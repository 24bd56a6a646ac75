"""Losses between what a teacher says of images and what a student does: pure functions, computed in float32.

| function | compares | source |
| --- | --- | --- |
| kl_logits | tempered probabilities | Hinton et al. 2015, 1503.02531 |
| dist_logits | their correlations, within images and within classes | Huang et al. 2022, 2205.10536 |
| attention_transfer | unit maps, by squared distance | Zagoruyko & Komodakis 2017, 1612.03928 |
| map_divergence | maps as distributions over places | Kullback & Leibler 1951, of what attention is |
| feature_distance | features of places, standardized | Romero et al. 2015, 1412.6550; Wei et al. 2022, 2205.14141 |

Each is a mean over images, so that equal parts of a batch average to the whole; `dist_logits` alone also looks across
the images of its part.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.map_grid import on_one_grid

_FLOOR = 1e-4
"""Share of a student's map that is spread evenly, so that a place without any energy has a logarithm."""


def kl_logits(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of tempered softmaxes, times T^2, mean over images."""
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def dist_logits(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """DIST: 1 - the correlation of tempered probabilities over the classes of an image, mean over images, and the same
    over the images of a class, mean over classes; their sum times T^2.

    It asks for the teacher's order of preferences and not for its values. NOTE: the second half sees the images of one
    micro-batch of one rank: it needs several, and how a batch is split changes it. Two classes have no order within an
    image that their sum does not give: there the first half says only which is the greater.
    """
    student = (student_logits.float() / temperature).softmax(dim=1)
    teacher = (teacher_logits.float() / temperature).softmax(dim=1)
    within_images = 1.0 - correlation(student, teacher, dim=1).mean()
    within_classes = 1.0 - correlation(student, teacher, dim=0).mean()
    return (within_images + within_classes) * temperature**2


def attention_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared distance of the L2-normalized maps, over places and images.

    Maps are [B, h, w] of any scale and any two grids. Between unit vectors on a grid of n places the value lies below
    2 / n: weights of some hundreds are normal (the paper's is 500).
    """
    student, teacher = (
        F.normalize(found.flatten(1), dim=1) for found in on_one_grid(student_map, teacher_map)
    )
    return (student - teacher).square().mean()


def map_divergence(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """KL(teacher || student) of the maps as distributions over places, mean over images.

    Maps are [B, h, w], not negative, of any scale and any two grids. Weights of about 1 are normal.
    """
    student, teacher = (_shares(found) for found in on_one_grid(student_map, teacher_map))
    student = (student + _FLOOR / student.shape[1]) / (1.0 + _FLOOR)
    return F.kl_div(student.log(), teacher, reduction="batchmean")


def feature_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 - the correlation over channels at each place, mean over places and images: 0 to 2.

    It is half the mean squared distance of the features standardized over channels. Both are [B, D, h, w], the
    student's having gone through a projection to the teacher's D; any two grids.
    """
    student, teacher = on_one_grid(student_features, teacher_features)
    return 1.0 - correlation(student, teacher, dim=1).mean()


def correlation(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    """Pearson's r along a dimension; 0 where one of them does not vary."""
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim=dim)


def _shares(raw: Tensor) -> Tensor:
    """[B, h, w] -> [B, h w] that sums to 1."""
    return F.normalize(raw.flatten(1), p=1.0, dim=1)
