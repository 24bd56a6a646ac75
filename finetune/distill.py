r"""Losses that shape a student: pure functions, and the objective that weighs and adds them.

batch -> teacher -> logits, attention ---+
     \-> student -> logits, energy map --+-> task + logits + attention -> Loss
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.base import ConfigError
from data_pipeline.batch import Batch, normalize
from data_pipeline.mix import mix_images
from engine.objective import Loss
from finetune.config import AttentionConfig, TeacherConfig
from finetune.teacher import Observer, TeacherOutput
from models.attention_maps import open_maps
from models.losses import task_loss
from models.map_hooks import MapHooks


def kl_logits(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Hinton et al. 2015: KL(teacher || student) of tempered softmaxes, times T^2, mean over images."""
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def attention_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Zagoruyko & Komodakis 2017: mean squared distance of the L2-normalised maps, over grid points and images.

    Maps are [B, h, w] of any scale and any two grids: both are average-pooled to the smaller height and the smaller
    width of the two, since a fine map can be summed up exactly and a coarse one cannot be sharpened. Between unit
    vectors on a grid of n points the value lies below 2 / n: weights of some hundreds are normal (the paper's is 500).
    """
    grid = (min(student_map.shape[1], teacher_map.shape[1]), min(student_map.shape[2], teacher_map.shape[2]))
    student, teacher = (_unit_map(raw, grid) for raw in (student_map, teacher_map))
    return (student - teacher).square().mean()


class DistillObjective:
    """Learning from labels and, where there is one, from a teacher: an engine Objective.

    `student` is the network itself, on which hooks live during a call; what is called is the engine's wrapper around
    it. Several student stages are compared with the teacher one by one, and averaged. Parts are logged without their
    weights; a loss of weight 0 is not computed, and a teacher that no loss needs is not called.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        task_weight: float = 1.0,
        label_fraction: float = 1.0,
        label_smoothing: float = 0.0,
        teacher: Observer | None = None,
        losses: TeacherConfig | None = None,
    ) -> None:
        if (teacher is None) != (losses is None):
            raise ConfigError("a teacher and its losses come together: give both or neither")
        self._mean, self._std = tuple(mean), tuple(std)
        self._task_weight, self._label_fraction, self._label_smoothing = (
            task_weight,
            label_fraction,
            label_smoothing,
        )
        self._teacher = teacher
        self._logits = (
            losses.logits
            if losses is not None and losses.logits is not None and losses.logits.weight
            else None
        )
        self._attention = wanted_attention(losses)
        self._student_maps: MapHooks | None = None
        if self._attention is not None:
            self._student_maps = open_maps(student, self._attention.student_stages)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        told = self._ask_teacher(batch)
        inputs = mix_images(normalize(batch.images, self._mean, self._std), batch.mix)
        logits, maps = self._run_student(model, inputs)
        parts: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        if self._task_weight:
            parts["task"] = task_loss(
                logits,
                batch.targets,
                label_shares=batch.label_shares,
                label_fraction=self._label_fraction,
                label_smoothing=self._label_smoothing,
            )
            weighted.append(self._task_weight * parts["task"])
        if self._logits is not None and told is not None:
            parts["logits"] = kl_logits(logits, told.logits, temperature=self._logits.temperature)
            weighted.append(self._logits.weight * parts["logits"])
        if self._attention is not None and told is not None:
            distances = [attention_transfer(*pair) for pair in _paired(maps, told.attention)]
            parts["attention"] = torch.stack(distances).mean()
            weighted.append(self._attention.weight * parts["attention"])
        return Loss(total=torch.stack(weighted).sum(), parts=parts)

    def _ask_teacher(self, batch: Batch) -> TeacherOutput | None:
        needed = self._logits is not None or self._attention is not None
        return self._teacher.observe(batch) if self._teacher is not None and needed else None

    def _run_student(self, model: nn.Module, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self._student_maps is None:
            return model(inputs), ()
        with self._student_maps:
            logits: Tensor = model(inputs)
        return logits, self._student_maps.take()


def wanted_attention(losses: TeacherConfig | None) -> AttentionConfig | None:
    """The attention loss, if there is one with a weight; its `teacher_layers` are what the teacher has to show."""
    wanted = losses.attention if losses is not None else None
    return wanted if wanted is not None and wanted.weight else None


def _paired(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """One with one; a single one on either side is paired with each of the other."""
    count = max(len(ours), len(theirs))
    ours = tuple(ours) * count if len(ours) == 1 else ours
    theirs = tuple(theirs) * count if len(theirs) == 1 else theirs
    return list(zip(ours, theirs, strict=True))


def _unit_map(raw: Tensor, grid: tuple[int, int]) -> Tensor:
    pooled = F.adaptive_avg_pool2d(raw.float().unsqueeze(1), grid)
    return F.normalize(pooled.flatten(1), dim=1)
