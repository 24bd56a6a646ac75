"""What a fine-tuning run is: a student, and the teacher and losses that shape it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from configs.base import Section
from configs.training import RunConfig


class LogitsConfig(Section):
    """Hinton et al. 2015: KL divergence to the teacher's tempered softmax."""

    weight: float = Field(default=1.0, ge=0.0)
    temperature: float = Field(default=2.0, gt=0.0)


class AttentionConfig(Section):
    """Zagoruyko & Komodakis 2017, with the teacher's CLS attention in place of its activations."""

    weight: float = Field(default=500.0, ge=0.0)
    """Half the paper's beta of 1000: the mean squared distance of unit maps on n grid points lies below 2 / n."""
    teacher_layers: tuple[int, ...] = (-1,)
    """Teacher blocks whose attention maps are looked at; negative counts from the last."""
    student_stages: tuple[int, ...] = (-2,)
    """Student stages (of timm's ``feature_info``: the stem is 0) whose energy maps are compared with it, of a
    Transformer the attention layers; negative counts from the last."""

    @model_validator(mode="after")
    def _layers_and_stages_pair_up(self) -> AttentionConfig:
        layers, stages = len(self.teacher_layers), len(self.student_stages)
        if layers != stages and 1 not in (layers, stages):
            raise ValueError(
                f"{layers} teacher_layers and {stages} student_stages do not pair up: give as many of one as of the "
                "other, or a single one that is compared with each"
            )
        return self


class TeacherConfig(Section):
    """A frozen network to learn from, and how."""

    checkpoint: str
    """Released folder (``runs/teacher/release``), or a timm reference."""
    cache: str | None = None
    """Folder of answers that ``mirada teach`` wrote, read instead of asking the teacher. Default: it is asked."""
    logits: LogitsConfig | None = LogitsConfig()
    attention: AttentionConfig | None = AttentionConfig()


class FinetuneConfig(RunConfig):
    """Supervised fine-tuning or distillation of `model`."""

    checkpoint: str | None = None
    """Released folder whose weights the model starts from; the head is reset when the classes differ."""
    teacher: TeacherConfig | None = None
    task_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the loss on true labels."""

    @property
    def releases(self) -> Mapping[str, str]:
        """The teacher, and where the weights start from."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher.checkpoint}
        return teacher if self.checkpoint is None else {**teacher, "start": self.checkpoint}

    @property
    def uncacheable(self) -> list[str]:
        """Why no teacher's answers can be kept for this run; empty where they can."""
        reasons = {
            "data.augment.mixup and cutmix: an answer is kept for a crop, and what a crop is mixed with depends on the "
            "batch; leave them out, or ask the teacher in training": self.data.augment.mixes,
            "data.progressive: how large a crop is depends on the step, and an answer is kept for one size; leave it "
            "out, or ask the teacher in training": bool(self.data.progressive),
        }
        return [reason for reason, holds in reasons.items() if holds]

    @model_validator(mode="after")
    def _answers_were_kept(self) -> FinetuneConfig:
        if self.teacher is not None and self.teacher.cache is not None and self.uncacheable:
            raise ValueError(f"teacher.cache cannot be used with {'; nor with '.join(self.uncacheable)}")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> FinetuneConfig:
        losses = [self.task_weight]
        if self.teacher is not None:
            losses += [
                part.weight for part in (self.teacher.logits, self.teacher.attention) if part is not None
            ]
        if not any(losses):
            raise ValueError("every loss has weight 0: give task_weight or a teacher's loss a weight")
        return self
