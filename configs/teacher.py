"""The teacher of a run and the losses by which a student learns from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from configs.base import Section
from configs.fade import Fade

ANSWERS_FILE = "answers.json"
"""What a folder of kept answers says of itself."""


class LossConfig(Section):
    """How much a loss counts."""

    weight: float = Field(default=1.0, ge=0.0)
    fade: Fade | None = None
    """The weight moves to another over a part of the run. Default: it stays."""

    @property
    def counts(self) -> bool:
        """Whether it is ever added to what is minimised."""
        return self.weight > 0.0 or (self.fade is not None and self.fade.to > 0.0)


class LogitsConfig(LossConfig):
    """What the teacher says of the classes."""

    loss: Literal["kl", "dist"] = "kl"
    """kl: divergence from the teacher's tempered softmax (Hinton et al. 2015); dist: correlation with it within images
    and within classes (Huang et al. 2022)."""
    temperature: float = Field(default=2.0, gt=0.0)


class PairedConfig(LossConfig):
    """A loss between layers of the teacher and stages of the student, pair by pair, averaged over pairs."""

    teacher_layers: tuple[int, ...] = (-1,)
    """From the input on; negative counts from the last. A single one is compared with each of the stages."""
    student_stages: tuple[int, ...] | Literal["matched"] = (-2,)
    """Stages of timm's ``feature_info`` (the stem is 0); negative counts from the last. A single one is compared with
    each of the layers. ``matched``: to each layer the stage at the same relative depth."""

    @model_validator(mode="after")
    def _layers_and_stages_pair_up(self) -> PairedConfig:
        if not self.teacher_layers or not self.student_stages:
            raise ValueError("teacher_layers and student_stages name at least one layer each")
        layers, stages = len(self.teacher_layers), len(self.student_stages)
        if self.student_stages != "matched" and layers != stages and 1 not in (layers, stages):
            raise ValueError(
                f"{layers} teacher_layers and {stages} student_stages do not pair up: give as many of one as of the "
                "other, or a single one that is compared with each"
            )
        return self


class AttentionConfig(PairedConfig):
    """Where the teacher looks, its attention, against where the student looks."""

    weight: float = Field(default=500.0, ge=0.0)
    """Of ``squared`` half the paper's beta of 1000: the mean squared distance of unit maps on n places lies below
    2 / n. Of ``kl`` about 1 is normal."""
    distance: Literal["squared", "kl"] = "squared"
    """squared: mean squared distance of unit maps (Zagoruyko & Komodakis 2017); kl: divergence of the student's map
    from the teacher's, both as distributions over places."""
    student_map: Literal["auto", "energy", "gate"] = "auto"
    """energy: mean square of a stage's channels; gate: a spatial gate (CBAM, GC), `student_stages` then counting
    gates; auto: energy, and attention of a student that is a Transformer, `student_stages` then counting its layers."""
    heads: Literal["mean", "matched"] = "mean"
    """matched: head by head, each against its own group of the stage's channels; ViTs. mean: averaged over heads."""

    @model_validator(mode="after")
    def _weight_suits_the_distance(self) -> AttentionConfig:
        if self.distance == "kl" and "weight" not in self.model_fields_set:
            raise ValueError(
                "distance kl needs a weight of its own (about 1): the default is that of squared"
            )
        return self

    @model_validator(mode="after")
    def _heads_meet_groups_of_channels(self) -> AttentionConfig:
        if self.heads == "matched" and self.student_map == "gate":
            raise ValueError(
                "heads matched are compared with groups of channels, and a gate has none: take energy"
            )
        return self

    @model_validator(mode="after")
    def _only_energy_has_a_depth(self) -> AttentionConfig:
        if self.student_stages == "matched" and self.student_map == "gate":
            raise ValueError(
                "student_stages matched are stages, and student_map gate counts gates: list the gates"
            )
        return self


class FeaturesConfig(PairedConfig):
    """What the teacher's tokens hold, against the student's stages projected to their width (1 x 1, not released)."""


class OverlapConfig(Section):
    """How far the student looks where its teacher looks, measured before the first step and in each evaluation."""

    teacher_layer: int = -1
    student_stage: int = -2


class TeacherConfig(Section):
    """A frozen network to learn from, and how."""

    checkpoint: str
    """Released folder (``runs/teacher/release``), or a timm reference."""
    cache: str | None = None
    """Folder of answers that ``mirada teach`` wrote, read instead of asking the teacher. Default: it is asked."""
    ensemble: tuple[str, ...] = ()
    """Further teachers of the same classes: probabilities and maps are averaged over all of them."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """bf16 and fp16 keep its matrices so, in half the memory. Default: train.precision."""
    sharded: bool = False
    """Its weights lie on the ranks in shares and are gathered layer by layer, as at ZeRO stage 3: for a teacher that is
    too large for each."""
    logits: LogitsConfig | None = LogitsConfig()
    attention: AttentionConfig | None = AttentionConfig()
    features: FeaturesConfig | None = None
    overlap: OverlapConfig | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the network itself is asked: in training, or, where its answers were kept, for the overlap alone."""
        return self.cache is None or self.overlap is not None

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Whose attention the losses ask for."""
        return self.attention.teacher_layers if self.attention is not None and self.attention.counts else ()

    @property
    def by_head(self) -> bool:
        """Whether that attention is asked for head by head."""
        return self.attention is not None and self.attention.counts and self.attention.heads == "matched"

    @property
    def token_layers(self) -> tuple[int, ...]:
        """Whose tokens the losses ask for."""
        return self.features.teacher_layers if self.features is not None and self.features.counts else ()

    @property
    def losses(self) -> Mapping[str, LossConfig]:
        """Those that ever count, by name."""
        given = {"logits": self.logits, "attention": self.attention, "features": self.features}
        return {name: loss for name, loss in given.items() if loss is not None and loss.counts}

    @model_validator(mode="after")
    def _features_are_of_one_teacher(self) -> TeacherConfig:
        if self.ensemble and "features" in self.losses:
            raise ValueError("features of several teachers have no mean: leave features or ensemble out")
        if self.ensemble and self.by_head:
            raise ValueError("heads of several teachers are not the same ones: set attention.heads to mean")
        return self
