"""Lesson: what one student is taught: its outputs of a forward, held against labels and a teacher's answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from configs.teacher import AttentionConfig, PairedConfig, TeacherConfig
from data_pipeline.batch import Batch
from engine.objective import Loss
from finetune.teacher import Located, Observer, TeacherOutput
from finetune.weights import LossWeights
from models.apprentice import Apprentice
from models.attention_maps import open_maps
from models.carrier import main_network
from models.depth import nearest_depths, relative_depths
from models.distill_losses import (
    attention_transfer,
    dist_logits,
    feature_distance,
    kl_logits,
    map_divergence,
)
from models.energy_maps import energy_of_groups, stage_names
from models.features import Features
from models.losses import task_loss
from models.map_hooks import MapHooks, Outputs

if TYPE_CHECKING:
    from typing_extensions import Self

_OF_LOGITS = {"kl": kl_logits, "dist": dist_logits}
_OF_MAPS = {"squared": attention_transfer, "kl": map_divergence}


class Lesson:
    """A student's losses; a forward of it inside a `with` block is what the next call of `loss` is about.

    Several pairs of a layer and a stage are compared one by one, and averaged. Parts are without their weights; a loss
    of weight 0 is not computed.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: TeacherConfig | None,
        *,
        weights: LossWeights,
        teacher: Observer | None = None,
        label_fraction: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self._losses = losses
        self._weights = weights
        self._label_fraction, self._label_smoothing = label_fraction, label_smoothing
        self._maps: MapHooks | None = None
        self._projected: MapHooks | None = None
        if losses is not None and losses.attention is not None and "attention" in weights:
            self._maps = _open_student_maps(main_network(student), losses.attention, teacher)
        if "features" in weights:
            if not isinstance(student, Apprentice):
                raise ConfigError(
                    "features are compared through projections: wrap the student in an Apprentice"
                )
            self._projected = Outputs(list(student.projections.named_children()))
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        for watched in (self._maps, self._projected):
            if watched is not None:
                self._hooks.enter_context(watched)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    @property
    def needs_teacher(self) -> bool:
        """Whether any of its losses asks a teacher."""
        return any(name in self._weights for name in ("logits", "attention", "features"))

    def loss(self, logits: Tensor, batch: Batch, told: TeacherOutput | None) -> Loss:
        """Of the forward that was watched, which gave `logits` for the images of `batch`."""
        parts: dict[str, Tensor] = {}
        if "task" in self._weights:
            parts["task"] = task_loss(
                logits,
                batch.targets,
                label_shares=batch.label_shares,
                label_fraction=self._label_fraction,
                label_smoothing=self._label_smoothing,
            )
        if told is not None and self._losses is not None:
            parts |= self._compare(self._losses, logits, told)
        weighted = [self._weights[name] * part for name, part in parts.items()]
        return Loss(total=torch.stack(weighted).sum(), parts=parts)

    def _compare(self, losses: TeacherConfig, logits: Tensor, told: TeacherOutput) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        if losses.logits is not None and "logits" in self._weights:
            compare = _OF_LOGITS[losses.logits.loss]
            parts["logits"] = compare(logits, told.logits, temperature=losses.logits.temperature)
        if losses.attention is not None and self._maps is not None:
            distance = _OF_MAPS[losses.attention.distance]
            by_head = losses.attention.heads == "matched"
            pairs = (_paired_by_head if by_head else _paired)(
                self._maps.take(), told.heads if by_head else told.attention
            )
            _refuse_single_places(self._maps.names, pairs)
            parts["attention"] = torch.stack([distance(*pair) for pair in pairs]).mean()
        if self._projected is not None:
            pairs = _paired(self._projected.take(), told.tokens)
            parts["features"] = torch.stack([feature_distance(*pair) for pair in pairs]).mean()
        return parts


def student_stages(
    student: nn.Module, pairs: PairedConfig, depths: Sequence[float] | None
) -> tuple[int, ...]:
    """The stages of a student that are compared; `depths` are those of the teacher's layers, None where not known."""
    if pairs.student_stages != "matched":
        return pairs.student_stages
    if depths is None:
        raise ConfigError(
            "student_stages: 'matched' needs the depth of the teacher's layers, which only the teacher itself "
            "knows: list the stages"
        )
    names = stage_names(student)
    if not names:
        raise ConfigError(
            f"'matched' chooses among the stages that timm lists in feature_info, and {type(student).__name__} has "
            "none: take another student"
        )
    return nearest_depths(depths, relative_depths(student, names))


def _open_student_maps(student: nn.Module, wanted: AttentionConfig, teacher: Observer | None) -> MapHooks:
    depths = teacher.attention_depths if isinstance(teacher, Located) else None
    of = wanted.student_map
    if wanted.student_stages == "matched":
        of = "energy"  # of stages, also where they hold attention
    try:
        stages = student_stages(student, wanted, depths)
        return Features(student, stages) if wanted.heads == "matched" else open_maps(student, stages, of=of)
    except ConfigError as error:
        raise ConfigError(f"teacher.attention.student_stages: {error}") from error


def _paired_by_head(features: Sequence[Tensor], heads: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """[B H, h, w] of each pair: the energy of a group of channels, and a head."""
    if not heads:
        raise ConfigError(
            "teacher.attention.heads: this teacher shows no heads, only their mean; set it to mean"
        )
    return [
        (energy_of_groups(ours, theirs.shape[1]).flatten(0, 1), theirs.flatten(0, 1))
        for ours, theirs in _paired(features, heads)
    ]


def _refuse_single_places(names: Sequence[str], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Of one place every map is the same: such a pair would only seem to be compared."""
    for ours, theirs in pairs:
        if 1 in (ours[0].numel(), theirs[0].numel()):
            shown = [" x ".join(map(str, found.shape[1:])) for found in (ours, theirs)]
            raise ConfigError(
                f"teacher.attention: a map of {shown[0]} of the student ({', '.join(names)}) cannot be compared with "
                f"one of {shown[1]} of the teacher: on a single place there is nothing to see; take an earlier stage"
            )


def _paired(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """One with one; a single one on either side is paired with each of the other."""
    count = max(len(ours), len(theirs))
    ours = tuple(ours) * count if len(ours) == 1 else ours
    theirs = tuple(theirs) * count if len(theirs) == 1 else theirs
    return list(zip(ours, theirs, strict=True))
