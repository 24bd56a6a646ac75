"""The `data` section: where images come from, and how each of them is varied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, PlainSerializer, model_validator

from configs.base import Duration, Section

MOST_BAD = 0.001
"""Share of the images that may fail to decode unless another is given."""

_PERCENT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%\s*$")
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


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a run: ``40 %`` of it, or ``30 epochs`` (steps, images) after its start."""

    after: Duration | float
    """A float is a percentage of the run."""

    @classmethod
    def parse(cls, text: object) -> Moment:
        """Reads the written form; raises ValueError with an example when it is not one."""
        if isinstance(text, Moment):
            return text
        match = _PERCENT.match(text) if isinstance(text, str) else None
        if match is not None:
            return cls(float(match[1]))
        try:
            return cls(Duration.parse(text))
        except ValueError as error:
            raise ValueError("write a moment of the run as '40 %', '30 epochs' or '10k steps'") from error

    def step(self, duration: Duration, *, steps_per_epoch: int, global_batch: int) -> int:
        """The step of a run of this duration before which it lies, rounded to the nearest."""
        scale = {"steps_per_epoch": steps_per_epoch, "global_batch": global_batch}
        if isinstance(self.after, Duration):
            return self.after.steps(**scale)
        return round(self.after / 100 * duration.steps(**scale))

    def __str__(self) -> str:
        return str(self.after) if isinstance(self.after, Duration) else f"{self.after:g} %"


MomentField = Annotated[Moment, BeforeValidator(Moment.parse), PlainSerializer(str, return_type=str)]


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


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 < values[0] <= values[1]:
        raise ValueError(f"{list(values)} is no range above 0: give the smaller first, as [0.08, 1.0]")
    return values


def _of_the_whole(values: tuple[float, float]) -> tuple[float, float]:
    if values[1] > 1.0:
        raise ValueError(
            f"{list(values)} goes beyond the whole image: write fractions of its area, as [0.08, 1.0]"
        )
    return values


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Fractions = Annotated[Range, AfterValidator(_of_the_whole)]


class ViewConfig(Section):
    """Further random crops of each training image (multi-crop)."""

    count: int = Field(default=1, ge=1, le=64)
    """How many; each is a random resized crop of its own, mirrored and coloured as ``augment`` says."""
    size: int = Field(ge=8)
    """Side of the square, in pixels."""
    scale: Fractions
    """Area of the crop as a fraction of the image."""


class AugmentConfig(Section):
    """How a training image is varied; evaluation resizes and nothing else."""

    crop: Literal["none", "pad", "random_resized"] = "random_resized"
    """``none`` resizes; ``pad`` shifts by up to `pad` pixels; ``random_resized`` draws scale and ratio."""
    scale: Fractions = (0.08, 1.0)
    """Area of a random resized crop as a fraction of the image."""
    ratio: Range = (0.75, 1.3333333333)
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
    """Further crops of each image, as ``Batch.views`` in this order; these are not mixed."""
    mixup: float = Field(default=0.0, ge=0.0, le=1000.0)
    """Alpha of mixup (Zhang et al. 2018): neighbours in the batch are blended by Beta(alpha, alpha); 0: off."""
    cutmix: float = Field(default=0.0, ge=0.0, le=1000.0)
    """Alpha of cutmix (Yun et al. 2019): a box of Beta(alpha, alpha) of the area is the neighbour's; 0: off."""
    mix_probability: float = Field(default=1.0, gt=0.0, le=1.0)
    """With which a pair of neighbours is mixed."""
    mix_switch: float = Field(default=0.5, ge=0.0, le=1.0)
    """With which a pair is mixed by cutmix, where both are on."""
    passes: int | None = Field(default=None, ge=1)
    """Passes over the data whose variations are new; later ones repeat them (pass modulo this) in a fresh order.
    Default: all are new. Answers of a teacher that were kept (``teacher.cache``) then serve for any length of run."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with one another: then a batch is cut into pairs, not images."""
        return self.mixup > 0 or self.cutmix > 0


class CorpusConfig(Section):
    """A further corpus that is mixed into the one of ``data.train``."""

    train: str
    """Folder of indexed shards with the classes of ``data.train``, or without labels."""
    weight: WeightField
    """``30 %`` of the images, or ``2 passes`` over it in each pass over ``data.train``."""


class PhaseConfig(Section):
    """A first part of the run in which images are smaller than ``data.image_size``, or larger."""

    until: MomentField
    """Its end: ``40 %`` of the run, ``30 epochs``, ``10k steps``."""
    image_size: int = Field(ge=8)
    """Side of the square the model sees until then, in pixels."""


class DataConfig(Section):
    """Where images come from and how they become a batch."""

    train: str
    """Folder of indexed shards; ``mirada://sample/train`` is the embedded sample."""
    mixture: tuple[CorpusConfig, ...] = ()
    """Further corpora to train on; an epoch stays one pass over `train`, which has what their shares leave."""
    val: str | None = None
    """Folder of indexed shards to evaluate on, every sample exactly once."""
    image_size: int = Field(default=224, ge=8)
    """Side of the square the model sees, in pixels; with `progressive`: at last, and in evaluation."""
    progressive: tuple[PhaseConfig, ...] = ()
    """Other sizes before, one after the other; ViT and Swin models that timm can resize, and CNNs."""
    channels: Literal[1, 3] = 3
    """1 decodes to grey, 3 to RGB."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Per channel, of pixels scaled to 0..1; applied on the device."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How images are resized. ``bicubic`` is sharper, what many released networks were trained on, and slower."""
    eval_crop: float | None = Field(default=None, gt=0.0, le=1.0)
    """Evaluate the central square of this part of the shorter side (timm's ``crop_pct``). Default: the whole image,
    squeezed into a square."""
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
    held_out: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of the images of `train` that is not trained on (a fixed choice by sample): to choose between networks.
    Without `val` it is evaluated on."""
    repeats: int = Field(default=1, ge=1, le=64)
    """Copies of each sample, varied differently, side by side in training (Hoffer et al. 2020; DeiT's is 3).

    An epoch has as many images as ever, and so this part of the samples."""
    captions: bool = False
    """Also read each sample's ``.txt``, as ``Batch.captions``."""
    max_bad_fraction: float = Field(default=MOST_BAD, ge=0.0, le=1.0)
    """Above this fraction of images that do not decode, the run stops."""
    augment: AugmentConfig = AugmentConfig()

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Every size the model sees, the last of them in evaluation."""
        return (*(phase.image_size for phase in self.progressive), self.image_size)

    @property
    def batch_label_fraction(self) -> float:
        """Fraction of the images of a training batch that have a label, on average."""
        return self.label_fraction if self.unlabelled == "keep" else 1.0

    @property
    def evaluated(self) -> str:
        """What a run is evaluated on, for people."""
        return self.val or f"{self.train} (held out: {self.held_out:.3g} of it)"

    @model_validator(mode="after")
    def _held_out_is_of_labelled_images(self) -> DataConfig:
        if self.held_out and (self.mixture or self.label_fraction < 1.0):
            other = "'mixture'" if self.mixture else "'label_fraction' below 1"
            raise ValueError(
                f"'held_out' takes its images from one corpus whose labels may all be used, and {other} is set: leave "
                "one of them out, or split by a manifest's column 'split': mirada data build --splits"
            )
        return self

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
