"""The sections of a training run: model, optimizer, schedule, ZeRO, loop, tracking; and the whole of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from configs.attention import AttentionConfig
from configs.base import Duration, DurationField, Section
from configs.data import DataConfig

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt")
"""How the name of a file with weights ends; all but the first are PyTorch's."""


class ModelConfig(Section):
    """A timm model by name, with the keyword arguments timm takes."""

    name: str
    """timm architecture, for instance ``vit_base_patch16_224``."""
    args: dict[str, Any] = {}
    """Keyword arguments of that architecture (``embed_dim``, ``depth``, ``drop_path_rate`` ...)."""
    num_classes: int | None = Field(default=None, ge=1)
    """Default: the number of classes in the data's class map."""
    attention: AttentionConfig = AttentionConfig()
    """Kernel, gates, search, two stages, dynamic tokens, progressive activation and penalties: docs/systems.md."""


class OptimConfig(Section):
    """The optimizer, with no decay on norms and biases. docs/training.md says which one works at which ZeRO stage."""

    name: Literal["adamw", "lamb", "lion", "muon"] = "adamw"
    lr: float = Field(gt=0.0)
    """Peak learning rate, for the global batch as given (no hidden scaling rule)."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient; for Lion (0.9, 0.99) is usual."""
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Of Muon's matrices; what Muon leaves to AdamW uses `betas`."""
    layer_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    """Factor by which the learning rate shrinks per layer towards the input (fine-tuning)."""
    clip_grad: float | None = Field(default=1.0, gt=0.0)
    """Global gradient norm above which gradients are scaled down."""


class ScheduleConfig(Section):
    """Learning rate over the run, a pure function of the step."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """wsd: warm-up, then the peak rate, then straight down over `decay` (Hu et al. 2024)."""
    warmup: DurationField = Duration(0, "steps")
    min_lr: float = Field(default=0.0, ge=0.0)
    """Learning rate at the end, absolute."""
    decay: DurationField | None = None
    """How long wsd goes down at the end of the run. Default: a tenth of the run."""

    @model_validator(mode="after")
    def _only_wsd_has_a_decay(self) -> ScheduleConfig:
        if self.decay is not None and self.name != "wsd":
            raise ValueError(f"decay is of schedule.name: wsd; {self.name} has none, take it out")
        return self


class ZeroConfig(Section):
    """DeepSpeed ZeRO: what is sharded over ranks."""

    stage: Literal[0, 1, 2, 3] = 2
    """0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in host memory: the optimizer state and its step (stage 1 to 3), or parameters as well (stage 3)."""
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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 are autocast with fp32 master weights; fp16 scales the loss, dynamically."""
    loss_scale_power: int = Field(default=16, ge=0, le=32)
    """fp16 starts with losses times 2 to this power; halved on overflow, doubled after a thousand good steps."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the rest again in the backward pass: less memory, a third slower."""
    compile: bool = False
    """torch.compile the model through the engine; needs a C++ compiler. Weights keep their names."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Decay per step of an exponential moving average of the weights; evaluated and released instead of them."""
    evaluate_every: DurationField = Duration(1, "epochs")
    evaluate_raw: bool = True
    """With `ema`, score the weights themselves as well ("val_raw/..."): each evaluation takes twice as long."""
    checkpoint_every: DurationField = Duration(1, "epochs")
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    """Steps between two points in the event log."""
    max_nonfinite: int = Field(default=3, ge=1)
    """Steps in a row without a finite loss and gradient after which the run goes back to its last checkpoint."""
    max_rollbacks: int = Field(default=2, ge=0)
    """How often a run may do that before it gives up."""
    watchdog_s: float = Field(default=1800.0, gt=0.0)
    """Seconds without any progress after which a rank says where it hangs and ends the run."""


class ProbeConfig(Section):
    """How features are evaluated: by the labels of their neighbours, and by a linear classifier on them."""

    max_images: int = Field(default=100_000, ge=1)
    """Most labelled training images that neighbours are sought in and the classifier is fitted on, a fixed choice."""
    neighbours: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.07, gt=0.0)
    """Of the neighbours' votes: exp(cosine / temperature) (Wu et al. 2018)."""
    l2: float = Field(default=1e-3, gt=0.0)
    """Penalty on the classifier's squared weights, beside the mean cross entropy of standardized features."""


def _off_is_text(value: object) -> object:
    """YAML 1.1 reads an unquoted ``off`` as false."""
    return "off" if value is False else value


def _is_a_model_name(name: str) -> str:
    """MLflow refuses / and :, and quotes would end the filters in which the name stands."""
    refused = [character for character in "/:'\"`" if character in name]
    if refused or not name.strip():
        raise ValueError(f"a registered model's name is not empty and has none of / : ' \" `, not {name!r}")
    return name


class TrackingConfig(Section):
    """Where the follower of the event log sends a run."""

    uri: Annotated[str | None, BeforeValidator(_off_is_text)] = None
    """MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else mlflow.db beside the run folder. ``off``: nowhere."""
    experiment: str = "mirada"
    run_name: str | None = None
    """Default: the run folder's name."""
    parent: str | None = None
    """Folder of the sweep or search that the run is one of: its run in MLflow is the parent of this one."""
    registry: Annotated[str, AfterValidator(_is_a_model_name)] | None = None
    """Name of the registered MLflow model that the release becomes a version of. Default: it is not registered."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, below the run folder; needs the optional package."""
    system_metrics: bool = True
    """Sample processor, memory, disk, network and GPUs of rank 0's host every 10 s."""


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
    def _paths_are_not_compiled(self) -> RunConfig:
        if self.model.attention.search is not None and self.train.compile:
            raise ValueError(
                "train.compile and model.attention.search: every path of a supernet would be compiled anew; set "
                "train.compile: false"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_the_stage(self) -> RunConfig:
        name, stage = self.optim.name, self.zero.stage
        if name == "lamb" and stage > 0:
            raise ValueError(
                f"optim.name lamb works at zero.stage 0, not {stage}: its trust ratio is per tensor, and ZeRO 1 to 3 "
                "give the optimizer flat pieces of several; use zero.stage 0, or optim.name adamw, lion or muon"
            )
        if name == "muon" and stage > 0 and self.optim.clip_grad is not None:
            raise ValueError(
                f"optim.clip_grad is {self.optim.clip_grad}, but for muon ZeRO {stage} would clip the orthogonalized "
                "update instead of the gradient; set optim.clip_grad: null (Muon's updates have a fixed size), or "
                "zero.stage 0"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> RunConfig:
        offload, stage = self.zero.offload, self.zero.stage
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[offload]
        if stage < lowest:
            raise ValueError(
                f"zero.offload {offload} works from zero.stage {lowest} on, not at {stage}: a rank offloads its "
                f"own shard of what is sharded; use zero.stage {' or '.join(map(str, range(lowest, 4)))}, "
                "or zero.offload none"
            )
        return self

    @property
    def networks(self) -> Mapping[str, ModelConfig]:
        """The networks that are trained on the classes of the data, by where they are described."""
        return {"model": self.model}

    @property
    def releases(self) -> Mapping[str, str]:
        """The released checkpoints that the run builds on, by what they are to it."""
        return {}

    @property
    def kept_answers(self) -> Mapping[str, str]:
        """Folders of a teacher's answers that the run reads, by the setting that names them."""
        return {}

    @property
    def undecided(self) -> frozenset[str]:
        """Settings by dotted path that are known only when the run starts."""
        return frozenset()
