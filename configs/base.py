"""What a run is: the typed sections every program shares, and the error a user's mistake becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PlainSerializer, model_validator

_UNITS = {"k": 1_000, "M": 1_000_000}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kM]?)\s*(epochs?|steps?|images?)\s*$")


class ConfigError(Exception):
    """A user's mistake: printed without a traceback, exit code 2."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training in the unit its author thinks in: ``90 epochs``, ``10k steps``, ``1.2M images``."""

    amount: float
    unit: Literal["epochs", "steps", "images"]

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Reads the written form; raises ValueError with an example when it is not one."""
        if isinstance(text, Duration):
            return text
        match = _DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("write a duration as '90 epochs', '10k steps' or '1.2M images'")
        number, scale, unit = match.groups()
        plural: Any = unit if unit.endswith("s") else unit + "s"
        return cls(float(number) * _UNITS.get(scale, 1), plural)

    def steps(self, *, steps_per_epoch: int, global_batch: int) -> int:
        """Optimizer steps this lasts, rounded to the nearest."""
        per_unit = {"epochs": float(steps_per_epoch), "steps": 1.0, "images": 1.0 / global_batch}
        return round(self.amount * per_unit[self.unit])

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


DurationField = Annotated[Duration, BeforeValidator(Duration.parse), PlainSerializer(str, return_type=str)]

_WEIGHT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(%|pass(?:es)?)\s*$")


@dataclass(frozen=True, slots=True)
class Weight:
    """How much of a corpus a mixture has: ``30 %`` of the images, or ``2 passes`` in each epoch."""

    amount: float
    unit: Literal["%", "passes"]

    @classmethod
    def parse(cls, text: object) -> Weight:
        """Reads the written form; raises ValueError with an example when it is not one."""
        if isinstance(text, Weight):
            return text
        match = _WEIGHT.match(text) if isinstance(text, str) else None
        if match is None or not 0 < float(match[1]) < (100 if match[2] == "%" else 1e6):
            raise ValueError("write a weight as '30 %' (of the images, below 100) or '2 passes' (per epoch)")
        return cls(float(match[1]), "%" if match[2] == "%" else "passes")

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


WeightField = Annotated[Weight, BeforeValidator(Weight.parse), PlainSerializer(str, return_type=str)]


class Section(BaseModel):
    """Part of a config: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


MAX_LAYERS = 4
"""Most operations RandAugment applies to an image; each has random numbers of its own."""


class RandAugmentConfig(Section):
    """RandAugment (Cubuk et al. 2020) with timm's operations; the defaults are timm's ``rand-m9-mstd0.5-inc1``."""

    layers: int = Field(default=2, ge=1, le=MAX_LAYERS)
    """Operations drawn per image, of 15 (14 for grey images), with replacement."""
    magnitude: float = Field(default=9.0, ge=0.0, le=10.0)
    """Mean strength: 10 is the end of each operation's range."""
    std: float = Field(default=0.5, ge=0.0, le=10.0)
    """Standard deviation of the strength, drawn for each operation and kept within 0 to 10."""
    probability: float = Field(default=0.5, gt=0.0, le=1.0)
    """With which each drawn operation is applied."""
    increasing: bool = True
    """Every operation grows stronger with the magnitude; false is timm's ranges without ``inc1``."""


class ColourJitterConfig(Section):
    """torchvision's ColorJitter: each part by a random amount, in random order; 0 leaves a part alone."""

    brightness: float = Field(default=0.0, ge=0.0, le=10.0)
    """Factor between 1 - this (not below 0) and 1 + this."""
    contrast: float = Field(default=0.0, ge=0.0, le=10.0)
    """As `brightness`."""
    saturation: float = Field(default=0.0, ge=0.0, le=10.0)
    """As `brightness`."""
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    """Largest turn to either side, 0.5 being half of the colour circle."""
    probability: float = Field(default=1.0, gt=0.0, le=1.0)
    """With which an image is changed at all."""

    @model_validator(mode="after")
    def _changes_something(self) -> ColourJitterConfig:
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            raise ValueError("set 'brightness', 'contrast', 'saturation' or 'hue' above 0, or leave it out")
        return self


class ViewConfig(Section):
    """Further random crops of each training image (multi-crop)."""

    count: int = Field(default=1, ge=1, le=64)
    """How many; each is a random resized crop of its own, mirrored and coloured as ``augment`` says."""
    size: int = Field(ge=8)
    """Side of the square, in pixels."""
    scale: tuple[float, float]
    """Area of the crop as a fraction of the image."""


class AugmentConfig(Section):
    """How a training image is varied; evaluation resizes and nothing else."""

    crop: Literal["none", "pad", "random_resized"] = "random_resized"
    """``none`` resizes; ``pad`` shifts by up to `pad` pixels; ``random_resized`` draws scale and ratio."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a random resized crop as a fraction of the image."""
    ratio: tuple[float, float] = (0.75, 1.3333333333)
    """Width / height of a random resized crop."""
    pad: int = Field(default=0, ge=0)
    """Pixels of zero padding on each side from which a ``pad`` crop is drawn."""
    flip: bool = True
    """Mirror left to right for half of the images."""
    randaugment: RandAugmentConfig | None = None
    """Random operations on the cropped and mirrored image; default: none."""
    colour_jitter: ColourJitterConfig | None = None
    """Random colours, after `randaugment`; default: none."""
    erase: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of random erasing (Zhong et al. 2017): a box of 2 to 33 % of the area becomes the mean colour."""
    views: tuple[ViewConfig, ...] = ()
    """Further crops of each image, as ``Batch.views`` in this order."""


class CorpusConfig(Section):
    """A further corpus that is mixed into the one of ``data.train``."""

    train: str
    """Folder of indexed shards with the classes of ``data.train``, or without labels."""
    weight: WeightField
    """``30 %`` of the images, or ``2 passes`` over it in each pass over ``data.train``."""


class DataConfig(Section):
    """Where images come from and how they become a batch."""

    train: str
    """Folder of indexed shards; ``mirada://sample/train`` is the embedded sample."""
    mixture: tuple[CorpusConfig, ...] = ()
    """Further corpora to train on; an epoch stays one pass over `train`, which has what their shares leave."""
    val: str | None = None
    """Folder of indexed shards to evaluate on, every sample exactly once."""
    image_size: int = Field(default=224, ge=8)
    """Side of the square the model sees, in pixels."""
    channels: Literal[1, 3] = 3
    """1 decodes to grey, 3 to RGB."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Per channel, of pixels scaled to 0..1; applied on the device."""
    decode: Literal["fast", "exact"] = "fast"
    """``exact``: PIL's full decode and antialiased resize, bit for bit; ``fast``: close to it, and faster."""
    workers: int = Field(default=2, ge=0)
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = Field(default=4, ge=1)
    """Batches each worker prepares ahead."""
    cache_size: ByteSize | None = Field(default=None, gt=0)
    """Bytes that copies of remote or compressed shards may take on a node (``200GB``); default: half of the free."""
    streams: int | None = Field(default=None, ge=1)
    """Canonical streams the sample order is dealt to; a divisor of the global batch. Default: chosen once per run."""
    shuffle_window: int = Field(default=8, ge=1)
    """Shards whose samples are mixed with one another within a stream."""
    label_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Fraction of training images whose label may be used (a fixed choice by `label_seed` and sample)."""
    unlabelled: Literal["keep", "drop"] = "keep"
    """``keep`` trains on images without label too (for a teacher to label); ``drop`` leaves them out."""
    label_seed: int = 0
    captions: bool = False
    """Also read each sample's ``.txt``, as ``Batch.captions``."""
    max_bad_fraction: float = Field(default=0.001, ge=0.0, le=1.0)
    """Above this fraction of images that do not decode, the run stops."""
    augment: AugmentConfig = AugmentConfig()

    @property
    def batch_label_fraction(self) -> float:
        """Fraction of the images of a training batch that have a label, on average."""
        return self.label_fraction if self.unlabelled == "keep" else 1.0

    @model_validator(mode="after")
    def _grey_has_no_colour(self) -> DataConfig:
        jitter = self.augment.colour_jitter
        if self.channels == 1 and jitter is not None:
            wrong = [name for name in ("saturation", "hue") if getattr(jitter, name)]
            if wrong:
                raise ValueError(
                    f"'augment.colour_jitter' changes {' and '.join(wrong)}, which grey images do not have: "
                    "use its 'brightness' and 'contrast', or 'channels: 3'"
                )
        return self

    @model_validator(mode="after")
    def _mixture_leaves_room(self) -> DataConfig:
        taken = sum(corpus.weight.amount for corpus in self.mixture if corpus.weight.unit == "%")
        if taken >= 100:
            raise ValueError(f"the shares in 'mixture' are {taken:g} %, which leaves nothing for 'train'")
        return self

    @model_validator(mode="after")
    def _channels_agree(self) -> DataConfig:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"'{name}' has {len(getattr(self, name))} values for {self.channels} channel(s)"
                )
        return self


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
