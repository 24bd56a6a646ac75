"""What a fine-tuning run is: a student, and the teacher and losses that shape it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from configs.base import Section
from configs.modes import FullMode, KnnMode, LinearProbeMode, Mode
from configs.training import ModelConfig, RunConfig

FROM_CHECKPOINT = "checkpoint"
"""The `model.name` that stands for the checkpoint's own."""

FOLLOWING = ("channels", "image_size", "mean", "std", "interpolation", "eval_crop")
"""Settings of `data` that are the checkpoint's where the recipe does not give them."""


class LogitsConfig(Section):
    """Hinton et al. 2015: KL divergence to the teacher's tempered softmax."""

    weight: float = Field(default=1.0, ge=0.0)
    temperature: float = Field(default=2.0, gt=0.0)


class AttentionConfig(Section):
    """Zagoruyko & Komodakis 2017, with the teacher's CLS attention in place of its activations."""

    weight: float = Field(default=500.0, ge=0.0)
    """Half the paper's beta of 1000: the mean squared distance of unit maps on n grid points lies below 2 / n."""
    teacher_layers: tuple[int, ...] = (-1,)
    """Teacher blocks whose attention maps are averaged; negative counts from the last."""
    student_stages: tuple[int, ...] = (-2,)
    """Student stages (of timm's ``feature_info``: the stem is 0) whose energy maps are compared with it, of a
    Transformer the attention layers; negative counts from the last."""


class TeacherConfig(Section):
    """A frozen network to learn from, and how."""

    checkpoint: str
    """Released folder (``runs/teacher/release``), or a timm reference."""
    logits: LogitsConfig | None = LogitsConfig()
    attention: AttentionConfig | None = AttentionConfig()


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

    @property
    def releases(self) -> Mapping[str, str]:
        """The teacher, and where the weights start from."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher.checkpoint}
        return teacher if self.checkpoint is None else {**teacher, "start": self.checkpoint}

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
        losses = [self.task_weight]
        if self.teacher is not None:
            losses += [
                part.weight for part in (self.teacher.logits, self.teacher.attention) if part is not None
            ]
        if not any(losses):
            raise ValueError("every loss has weight 0: give task_weight or a teacher's loss a weight")
        return self
