"""The sections of a training run: model, optimizer, schedule, ZeRO, loop, tracking; and the whole of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from configs.base import Duration, DurationField, Section
from configs.data import DataConfig


class ModelConfig(Section):
    """A timm model by name, with the keyword arguments timm takes."""

    name: str
    """timm architecture, for instance ``vit_base_patch16_224``."""
    args: dict[str, Any] = {}
    """Keyword arguments of that architecture (``embed_dim``, ``depth``, ``drop_path_rate`` ...)."""
    num_classes: int | None = Field(default=None, ge=1)
    """Default: the number of classes in the data's class map."""


class OptimConfig(Section):
    """AdamW, with no decay on norms and biases."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0.0)
    """Peak learning rate, for the global batch as given (no hidden scaling rule)."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    """Factor by which the learning rate shrinks per layer towards the input (fine-tuning)."""
    clip_grad: float | None = Field(default=1.0, gt=0.0)
    """Global gradient norm above which gradients are scaled down."""


class ScheduleConfig(Section):
    """Learning rate over the run, a pure function of the step."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: DurationField = Duration(0, "steps")
    min_lr: float = Field(default=0.0, ge=0.0)
    """Learning rate at the end, absolute."""


class ZeroConfig(Section):
    """DeepSpeed ZeRO: what is sharded over ranks."""

    stage: Literal[0, 1, 2, 3] = 2
    """0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    extra: dict[str, Any] = {}
    """Further DeepSpeed keys, passed through verbatim; a key Mirada sets itself is an error."""


class TrainConfig(Section):
    """The loop."""

    duration: DurationField
    global_batch: int = Field(ge=1)
    """Images per optimizer step over all ranks; independent of how many ranks there are."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Most images a rank takes through the model at once; accumulation follows. Default: its whole share."""
    ranks: int | Literal["auto"] = "auto"
    """Local processes to start: ``auto`` is one per GPU, else per core up to 2. Not for torchrun and SLURM."""
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast with fp32 master weights."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay per step of an exponential moving average of the weights; evaluated and released instead of them."""
    evaluate_every: DurationField = Duration(1, "epochs")
    checkpoint_every: DurationField = Duration(1, "epochs")
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    """Steps between two points in the event log."""


def _off_is_text(value: object) -> object:
    """YAML 1.1 reads an unquoted ``off`` as false."""
    return "off" if value is False else value


class TrackingConfig(Section):
    """Where the follower of the event log sends a run."""

    uri: Annotated[str | None, BeforeValidator(_off_is_text)] = None
    """MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else mlflow.db beside the run folder. ``off``: nowhere."""
    experiment: str = "mirada"
    run_name: str | None = None
    """Default: the run folder's name."""


class RunConfig(Section):
    """What pretraining and fine-tuning have in common."""

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    zero: ZeroConfig = ZeroConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _ema_needs_whole_parameters(self) -> RunConfig:
        if self.train.ema is not None and self.zero.stage == 3:
            raise ValueError("train.ema needs whole parameters on each rank: use zero.stage 0, 1 or 2")
        return self
