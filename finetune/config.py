"""What a fine-tuning run is: a student, where it starts from, and what it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from configs.fade import Fade
from configs.modes import FullMode, KnnMode, LinearProbeMode, Mode
from configs.teacher import TeacherConfig
from configs.training import ModelConfig, RunConfig

FROM_CHECKPOINT = "checkpoint"
"""The `model.name` that stands for the checkpoint's own."""

FOLLOWING = ("channels", "image_size", "mean", "std", "interpolation", "eval_crop")
"""Settings of `data` that are the checkpoint's where the recipe does not give them."""


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
    def networks(self) -> Mapping[str, ModelConfig]:
        """The students by where they are described."""
        return {**super().networks, **{f"students.{name}": model for name, model in self.students.items()}}

    @property
    def kept_answers(self) -> Mapping[str, str]:
        """Those that are read instead of asking the teacher."""
        cache = None if self.teacher is None else self.teacher.cache
        return {} if cache is None else {"teacher.cache": cache}

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
            if self.students:
                mistakes.append("mode.name 'knn' learns nothing: leave 'students' out")
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
    def _watched_layers_are_not_recomputed(self) -> FinetuneConfig:
        """timm recomputes a watched layer unwatched, or calls what is in a stage and never the stage."""
        if not self.train.activation_checkpointing or self.teacher is None:
            return self
        watching = [f"teacher.{name}" for name in ("attention", "features") if name in self.teacher.losses]
        if self.teacher.overlap is not None:
            watching.append("teacher.overlap")
        if watching:
            raise ValueError(
                f"{' and '.join(watching)} watch layers of the student, which train.activation_checkpointing "
                "recomputes or passes over: leave it out (train.micro_batch saves memory too), or set "
                f"{'=null and '.join(watching)}=null"
            )
        return self

    @model_validator(mode="after")
    def _overlap_has_images_to_be_measured_on(self) -> FinetuneConfig:
        overlap = None if self.teacher is None else self.teacher.overlap
        if overlap is not None and self.data.val is None and not self.data.held_out:
            raise ValueError(
                "teacher.overlap is measured on the images of evaluations, and there are none: set data.val or "
                "data.held_out, or leave it out (teacher.overlap=null)"
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
