"""What is trained: a student, with the projections that a loss of features needs beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from configs.base import ConfigError
from finetune.config import FinetuneConfig
from finetune.lesson import student_stages
from finetune.teacher import Featured, Observer
from models.apprentice import Apprentice
from models.features import feature_widths


def with_projections(student: nn.Module, config: FinetuneConfig, teacher: Observer | None) -> nn.Module:
    """The student in an Apprentice where features are compared, else as it is."""
    if config.teacher is None or "features" not in config.teacher.losses or config.teacher.features is None:
        return student
    assert isinstance(teacher, Featured)  # the config refuses features of several teachers
    data = config.data
    torch.manual_seed(
        config.train.seed
    )  # whatever was built before: the same first weights beside any others
    try:
        stages = student_stages(student, config.teacher.features, teacher.token_depths)
        widths = feature_widths(student, stages, (data.channels, data.image_size, data.image_size))
    except ConfigError as error:
        raise ConfigError(f"teacher.features.student_stages: {error}") from error
    pairs = max(len(stages), len(teacher.token_widths))
    ours, theirs = (_as_many(pairs, values) for values in (widths, teacher.token_widths))
    return Apprentice(student, _as_many(pairs, stages), widths=list(zip(ours, theirs, strict=True)))


def _as_many(count: int, values: Sequence[int]) -> Sequence[int]:
    """A single one stands for all."""
    return tuple(values) * count if len(values) == 1 else values
