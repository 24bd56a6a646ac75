"""What a recipe chooses of attention: kernel, gates, two stages, dynamic tokens, the switching on, and penalties."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.base import DurationField, Section

GateName = Literal[
    "lrn",
    "se",
    "ese",
    "eca",
    "ecam",
    "ceca",
    "gc",
    "gca",
    "cbam",
    "lcbam",
    "coord",
    "scoord",
    "ela",
    "strip",
    "nl",
    "mhsa",
    "window",
    "shifted_window",
]


class GatesConfig(Section):
    """An attention layer at the end of the residual branch of every block in the stages named; ResNets."""

    name: GateName
    """lrn, mhsa, window and shifted_window are ours, the others timm's attention layers."""
    stages: tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"] = "all"
    """From 1; 0 is the stem, behind its activation. ``all`` are all but the stem."""
    reduction: float | None = Field(default=None, ge=1.0)
    """Channels to the hidden width of the gate: 16 in squeeze-and-excitation. Default: timm's own."""
    kernel_size: int | None = Field(default=None, ge=1)
    """Side of CBAM's spatial convolution (7), width of ECA's (from the channels), channels that lrn sums over (5)."""
    heads: int | None = Field(default=None, ge=1)
    """Of mhsa and the windows. Default: one per 32 channels."""
    window: int | None = Field(default=None, ge=1)
    """Side of a window in places of the map. Default: 7."""


class TwoStageConfig(Section):
    """Each token attends to its window and to a global subset of all tokens; ViTs. docs/two_stage.md."""

    window: int = Field(default=7, ge=1)
    """Side of a window in tokens; a grid that it does not divide is padded."""
    num_global: int = Field(default=49, ge=1)
    """Tokens in the global subset, whatever the size of the image: the cost is linear in the tokens."""
    subset: Literal["strided", "selected"] = "strided"
    """strided: at equal distances over rows and columns (num_global is a square number); selected: those that the
    class token, or the mean query, attends to most, anew in each image."""

    @model_validator(mode="after")
    def _lattice_is_square(self) -> TwoStageConfig:
        side = math.isqrt(self.num_global)
        if self.subset == "strided" and side**2 != self.num_global:
            raise ValueError(
                f"num_global {self.num_global} is no square number: a strided subset has as many rows as columns; use "
                f"{side**2} or {(side + 1) ** 2}, or subset: selected"
            )
        return self


class DynamicConfig(Section):
    """The number of tokens follows the image: those that say the same are merged; ViTs. docs/dynamic.md."""

    threshold: float = Field(gt=0.0, lt=1.0)
    """Cosine of two tokens' keys above which they are merged; what it leaves of an image depends on the network."""


class ProgressiveConfig(Section):
    """Attention is switched on from the layers next to the input to those next to the output."""

    over: DurationField
    """When the last layer is all there; not after the end of the run."""
    fade: DurationField | None = None
    """How long a layer takes to come in. Default: until the next one begins, so that they follow without a gap."""
    start: int = Field(default=1, ge=0)
    """Layers that are on from the beginning."""

    @model_validator(mode="after")
    def _fade_is_within(self) -> ProgressiveConfig:
        fade = self.fade
        if fade is not None and fade.unit == self.over.unit and fade.amount > self.over.amount:
            raise ValueError(f"one layer (fade: {fade}) cannot take longer than all (over: {self.over})")
        return self


class PenaltyConfig(Section):
    """A term of the loss against attention that dwells on a few places. docs/systems.md has the formulas."""

    name: Literal["uniform", "entropy", "gate_l1", "head_diversity"]
    """uniform, entropy and head_diversity are of softmax attention, gate_l1 is of gates."""
    weight: float = Field(gt=0.0)
    floor: float | None = Field(default=None, gt=0.0, le=1.0)
    """Of entropy: the part of log(number of keys) below which a row's entropy costs. Default: 0.5."""
    queries: int | None = Field(default=None, ge=1)
    """Most rows of a layer that are looked at, at equal distances: the cost is linear in the tokens. Default: 32."""

    @model_validator(mode="after")
    def _settings_are_of_this_penalty(self) -> PenaltyConfig:
        if self.floor is not None and self.name != "entropy":
            raise ValueError(f"floor is of entropy; {self.name} has none, take it out")
        if self.queries is not None and self.name == "gate_l1":
            raise ValueError("queries are of softmax attention; gate_l1 has none, take it out")
        return self


class AttentionConfig(Section):
    """The attention of a network; an option that the network has no use for is an error."""

    kernel: Literal["auto", "flash", "sdpa", "math"] = "auto"
    """auto takes the fastest that can; another that cannot be had is an error."""
    gates: GatesConfig | None = None
    two_stage: TwoStageConfig | None = None
    dynamic: DynamicConfig | None = None
    progressive: ProgressiveConfig | None = None
    regularize: tuple[PenaltyConfig, ...] = ()

    @model_validator(mode="after")
    def _each_penalty_once(self) -> AttentionConfig:
        names = [penalty.name for penalty in self.regularize]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"regularize lists {' and '.join(twice)} more than once: give one weight")
        return self

    @model_validator(mode="after")
    def _penalties_find_layers(self) -> AttentionConfig:
        of_rows = [penalty.name for penalty in self.regularize if penalty.name != "gate_l1"]
        if of_rows and self.two_stage is not None:
            raise ValueError(
                f"regularize {' and '.join(of_rows)} look at rows over all tokens, and with two_stage there are none: "
                "leave one of them out"
            )
        if self.regularize and self.progressive is not None and self.progressive.start == 0:
            raise ValueError(
                "regularize needs a layer to look at from the beginning: set progressive.start to 1 or more"
            )
        return self

    @model_validator(mode="after")
    def _tokens_can_be_merged(self) -> AttentionConfig:
        of_rows = [penalty.name for penalty in self.regularize if penalty.name != "gate_l1"]
        obstacles = {
            "two_stage, whose windows need a token at each place": self.two_stage is not None,
            "kernel flash, which takes no bias for the tokens that stand for several (auto, sdpa and math do)": (
                self.kernel == "flash"
            ),
            f"regularize {' and '.join(of_rows)}, which looks at rows over all tokens": bool(of_rows),
        }
        found = [text for text, is_there in obstacles.items() if is_there]
        if self.dynamic is not None and found:
            raise ValueError(f"dynamic does not go with {'; nor with '.join(found)}: leave one of them out")
        return self
