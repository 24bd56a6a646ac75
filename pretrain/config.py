"""What a pretraining run is: a run, and what it learns from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import Section
from configs.text import TEXT_OBJECTIVES, PairingConfig
from configs.training import ProbeConfig, RunConfig


class SupervisedConfig(Section):
    """Cross entropy on labels."""

    name: Literal["supervised"] = "supervised"


class MaeConfig(Section):
    """Masked autoencoding of a ViT (He et al. 2022); the defaults are the paper's."""

    name: Literal["mae"]
    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0)
    """Part of the model's patches that the encoder does not see."""
    decoder_width: int = Field(default=512, ge=4)
    decoder_depth: int = Field(default=8, ge=1)
    decoder_heads: int = Field(default=16, ge=1)


class SimMimConfig(Section):
    """SimMIM of a Swin or ViT (Xie et al. 2022); the defaults are the paper's."""

    name: Literal["simmim"]
    mask_ratio: float = Field(default=0.6, gt=0.0, lt=1.0)
    """Part of the mask patches that are replaced by the mask token."""
    mask_patch: int = Field(default=32, ge=1)
    """Side of a mask patch in pixels; a multiple of the model's patches."""


class SiglipConfig(PairingConfig):
    """Images and captions, by a sigmoid loss on all pairs of a batch (Zhai et al. 2023); defaults are the paper's."""

    name: Literal["siglip"]


class PretrainConfig(RunConfig):
    """Pretraining of a timm model: on labels, on images alone, or on images with captions."""

    objective: Annotated[
        MaeConfig | SiglipConfig | SimMimConfig | SupervisedConfig, Field(discriminator="name")
    ] = SupervisedConfig()
    probe: ProbeConfig | None = None
    """How features learned without labels are evaluated on ``data.val``. Default: as ProbeConfig's defaults say."""

    @property
    def is_supervised(self) -> bool:
        """Whether labels are what is learned from."""
        return isinstance(self.objective, SupervisedConfig)

    @property
    def needs_captions(self) -> bool:
        """Whether text beside the images is what is learned from."""
        return self.objective.name in TEXT_OBJECTIVES

    @model_validator(mode="after")
    def _probe_is_for_features(self) -> PretrainConfig:
        if self.is_supervised and self.probe is not None:
            raise ValueError(
                "'probe' evaluates features; a supervised model is evaluated by its own classifier: leave 'probe' out"
            )
        if self.needs_captions and self.probe is not None:
            raise ValueError(
                "'probe' evaluates features; with captions it is done by the names of classes "
                "(objective.prompts): leave 'probe' out"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_not_given_in_vain(self) -> PretrainConfig:
        if self.is_supervised:
            return self
        unused = {
            "train.label_smoothing": self.train.label_smoothing > 0,
            "model.num_classes": self.model.num_classes is not None,
            "data.augment.mixup and cutmix": self.data.augment.mixes,
            "data.augment.views": bool(self.data.augment.views),
            "data.progressive (masks are of one image size)": (
                bool(self.data.progressive) and not self.needs_captions
            ),
            "data.repeats (copies of a sample would be taken for different ones)": (
                self.data.repeats > 1 and self.needs_captions
            ),
        }
        given = [name for name, is_given in unused.items() if is_given]
        if given:
            source = "each image and its caption" if self.needs_captions else "each image alone"
            raise ValueError(
                f"objective.name {self.objective.name!r} learns from {source} and has no use for "
                f"{' and '.join(given)}: leave it out"
            )
        return self
