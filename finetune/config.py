"""What a fine-tuning run is: a student, and the teacher and losses that shape it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.base import Section
from configs.fade import Fade
from configs.modes import FullMode, KnnMode, LinearProbeMode, Mode
from configs.training import ModelConfig, RunConfig

FROM_CHECKPOINT = "checkpoint"
"""The `model.name` that stands for the checkpoint's own."""

FOLLOWING = ("channels", "image_size", "mean", "std", "interpolation", "eval_crop")
"""Settings of `data` that are the checkpoint's where the recipe does not give them."""


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


StudentName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class StudentConfig(ModelConfig):
    """The network that is fine-tuned: the checkpoint's own unless it is named."""

    name: str = FROM_CHECKPOINT
    """timm architecture; needed where there is no checkpoint, or one that does not say what it is of."""


class FinetuneConfig(RunConfig):
    """Supervised fine-tuning or distillation of `model`."""

    model: StudentConfig = StudentConfig()
    """Default: the checkpoint's own network, with its own arguments where none are given."""
    checkpoint: str | None = None
    """What the model starts from: a release or run folder, a timm name, ``hf-hub:OWNER/NAME``, a ``.safetensors`` or
    ``.pth`` file; docs/finetune.md."""
    mode: Mode = FullMode()
    """What is trained: full, linear_probe, last_blocks, lora, or knn, which trains nothing."""
    teacher: TeacherConfig | None = None
    task_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the loss on true labels."""
    task_fade: Fade | None = None
    """It moves to another over a part of the run. Default: it stays."""
    students: dict[StudentName, ModelConfig] = {}
    """Further students by name, trained beside `model` on the same batches and from the same pass of the teacher."""

    @property
    def releases(self) -> Mapping[str, str]:
        """The teachers, and where the weights start from."""
        found: dict[str, str] = {}
        if self.teacher is not None:
            found["teacher"] = self.teacher.checkpoint
            found |= {f"teacher{i}": name for i, name in enumerate(self.teacher.ensemble, start=2)}
        return found if self.checkpoint is None else {**found, "start": self.checkpoint}

    @property
    def loss_weights(self) -> Mapping[str, tuple[float, Fade | None]]:
        """Weight and fade of each loss by name."""
        losses = {} if self.teacher is None else self.teacher.losses
        of_teacher = {name: (loss.weight, loss.fade) for name, loss in losses.items()}
        return {"task": (self.task_weight, self.task_fade), **of_teacher}

    @property
    def uncacheable(self) -> list[str]:
        """Why no teacher's answers can be kept for this run; empty where they can."""
        reasons = {
            "data.augment.mixup and cutmix: an answer is kept for a crop, and what a crop is mixed with depends on the "
            "batch; leave them out, or ask the teacher in training": self.data.augment.mixes,
            "data.progressive: how large a crop is depends on the step, and an answer is kept for one size; leave it "
            "out, or ask the teacher in training": bool(self.data.progressive),
            "teacher.features: tokens would take a thousand times as much as an answer; leave them out, or ask the "
            "teacher in training": self.teacher is not None and bool(self.teacher.token_layers),
            "teacher.attention.heads matched: maps are kept as means over heads; set heads to mean, or ask the teacher "
            "in training": self.teacher is not None and self.teacher.by_head,
        }
        return [reason for reason, holds in reasons.items() if holds]

    @model_validator(mode="after")
    def _answers_were_kept(self) -> FinetuneConfig:
        if self.teacher is not None and self.teacher.cache is not None and self.uncacheable:
            raise ValueError(f"teacher.cache cannot be used with {'; nor with '.join(self.uncacheable)}")
        return self

    @property
    def undecided(self) -> frozenset[str]:
        """What the checkpoint decides, since the recipe does not."""
        if self.checkpoint is None:
            return frozenset()
        data = {f"data.{name}" for name in FOLLOWING if name not in self.data.model_fields_set}
        named = self.model.name != FROM_CHECKPOINT
        network = (
            {"model.name"}
            if "attention" in self.model.model_fields_set
            else {"model.name", "model.attention"}
        )
        return frozenset(data if named else data | network)

    @model_validator(mode="before")
    @classmethod
    def _mode_by_its_name(cls, given: Any) -> Any:
        """``mode: lora`` is ``mode: {name: lora}``; and knn needs no setting of a training."""
        if not isinstance(given, Mapping):
            return given
        mode = given.get("mode")
        if isinstance(mode, str):
            mode = {"name": mode}
            given = {**given, "mode": mode}
        if not isinstance(mode, Mapping) or mode.get("name") != "knn":
            return given
        train = {"duration": "1 steps", "global_batch": 64, **(given.get("train") or {})}
        return {"optim": {"lr": 1.0}, **given, "train": train}

    @model_validator(mode="after")
    def _modes_start_from_a_checkpoint(self) -> FinetuneConfig:
        mistakes = []
        name = self.mode.name
        if self.checkpoint is None:
            if name != "full":
                mistakes.append(
                    f"mode.name {name!r} keeps weights of a checkpoint, and none is given: set 'checkpoint'"
                )
            if self.model.name == FROM_CHECKPOINT:
                mistakes.append("'model.name' is missing: name an architecture of timm, or set 'checkpoint'")
        if isinstance(self.mode, LinearProbeMode) and self.optim.layer_decay is not None:
            mistakes.append(
                "optim.layer_decay is of several layers, and linear_probe trains one: leave it out"
            )
        if isinstance(self.mode, KnnMode):
            if self.teacher is not None:
                mistakes.append("mode.name 'knn' learns nothing: leave 'teacher' out")
            if self.data.val is None:
                mistakes.append("mode.name 'knn' scores the images of data.val: set it")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> FinetuneConfig:
        no_task = not self.task_weight and (self.task_fade is None or not self.task_fade.to)
        if no_task and (self.teacher is None or not self.teacher.losses):
            raise ValueError("every loss has weight 0: give task_weight or a teacher's loss a weight")
        return self

    @model_validator(mode="after")
    def _no_path_is_searched(self) -> FinetuneConfig:
        if any(model.attention.search is not None for model in (self.model, *self.students.values())):
            raise ValueError("model.attention.search is of `mirada search`, which pretrains: leave it out")
        return self

    @model_validator(mode="after")
    def _features_are_not_compiled(self) -> FinetuneConfig:
        if self.train.compile and self.teacher is not None and "features" in self.teacher.losses:
            raise ValueError(
                "teacher.features are watched in a way that train.compile cannot trace: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _students_do_not_meet(self) -> FinetuneConfig:
        """What would couple the students of one run, or is not made for several."""
        if not self.students:
            return self
        obstacles = {
            f"optim.clip_grad at zero.stage {self.zero.stage}, which clips by the norm of all students together: use "
            "zero.stage 0, where each is clipped by its own, or optim.clip_grad: null": (
                self.zero.stage > 0 and self.optim.clip_grad is not None
            ),
            "optim.layer_decay, which counts the layers of one network": self.optim.layer_decay is not None,
            "train.activation_checkpointing": self.train.activation_checkpointing,
            "train.compile": self.train.compile,
            "model.attention.progressive and regularize, which are of one network": any(
                model.attention.progressive is not None or model.attention.regularize
                for model in (self.model, *self.students.values())
            ),
        }
        found = [text for text, is_there in obstacles.items() if is_there]
        if found:
            raise ValueError(f"several students cannot be trained with {'; nor with '.join(found)}")
        return self
