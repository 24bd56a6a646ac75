"""What a recipe chooses of attention: kernel, gates, two stages, dynamic tokens, the switching on, and penalties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WrapSerializer, model_validator

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


Stages = tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]
"""From 1; 0 is the stem, behind its activation. ``all`` are all but the stem."""


class GateConfig(Section):
    """An attention layer for the end of a residual branch, and its settings."""

    name: GateName
    """lrn, mhsa, window and shifted_window are ours, the others timm's attention layers."""
    reduction: float | None = Field(default=None, ge=1.0)
    """Channels to the hidden width of the gate: 16 in squeeze-and-excitation. Default: timm's own."""
    kernel_size: int | None = Field(default=None, ge=1)
    """Side of CBAM's spatial convolution (7), width of ECA's (from the channels), channels that lrn sums over (5)."""
    heads: int | None = Field(default=None, ge=1)
    """Of mhsa and the windows. Default: one per 32 channels."""
    window: int | None = Field(default=None, ge=1)
    """Side of a window in places of the map. Default: 7."""

    def __str__(self) -> str:
        settings = self.model_dump(include=set(GateConfig.model_fields), exclude={"name"}, exclude_none=True)
        return " ".join([self.name, *(f"{name} {value:g}" for name, value in settings.items())])


class GatesConfig(GateConfig):
    """The same attention layer in every block of the stages named; ResNets."""

    stages: Stages = "all"
    """From 1; 0 is the stem, behind its activation. ``all`` are all but the stem."""


def _as_many(value: object) -> object:
    """One mapping is a group alone; nothing is no group."""
    if value is None:
        return ()
    return (value,) if isinstance(value, dict | GatesConfig) else value


def _as_written(value: object, dump: Callable[[object], Sequence[Any]]) -> Any:
    groups = list(dump(value))
    return groups[0] if len(groups) == 1 else groups or None


GatesField = Annotated[tuple[GatesConfig, ...], BeforeValidator(_as_many), WrapSerializer(_as_written)]


def _none_is_no_gate(value: object) -> object:
    return None if value == "none" else value


class SupernetConfig(Section):
    """A network that holds every choice of attention at once, for `mirada search`; ResNets. docs/search.md."""

    choices: tuple[Annotated[GateConfig | None, BeforeValidator(_none_is_no_gate)], ...] = Field(min_length=2)
    """Of each stage: gates, and ``none`` for no attention."""
    stages: Stages = "all"
    """Those that have the choice, each its own; as of `gates`."""

    def gates(self, path: Sequence[int], *, stages: Sequence[int]) -> tuple[GatesConfig, ...]:
        """What a recipe says of a path, which has the number of a choice for each of the stages."""
        return tuple(
            GatesConfig(**choice.model_dump(), stages=(stage,))
            for stage, choice in zip(stages, (self.choices[number] for number in path), strict=True)
            if choice is not None
        )

    @model_validator(mode="after")
    def _each_choice_once(self) -> SupernetConfig:
        names = list(map(choice_name, self.choices))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"choices lists {' and '.join(twice)} more than once: take one out")
        return self


def choice_name(choice: GateConfig | None) -> str:
    """For people: ``none``, ``se reduction 16``."""
    return "none" if choice is None else str(choice)


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

    kernel: Literal["auto", "tuned", "flash", "sdpa", "math", "float8"] = "auto"
    """auto takes what is usually the fastest, tuned what was measured to be on this machine; float8 rounds to 8 bits,
    and keeps 8 bits for the backward pass. docs/kernels.md, docs/float8.md. A kernel that cannot be had is an error."""
    gates: GatesField = ()
    """One group, or a list of groups in stages of their own."""
    search: SupernetConfig | None = None
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

    @model_validator(mode="after")
    def _a_stage_has_one_kind_of_gate(self) -> AttentionConfig:
        wanted = [("gates", group.stages) for group in self.gates]
        if self.search is not None:
            wanted.append(("search", self.search.stages))
        for number, (_, stages) in enumerate(wanted):
            for name, others in wanted[:number]:
                shared = _shared_stages(stages, others)
                if shared:
                    raise ValueError(
                        f"{name} and {wanted[number][0]} both stand in stage {shared}: a stage has gates of one kind; "
                        "give each its own 'stages'"
                        if name != wanted[number][0]
                        else f"gates stand twice in stage {shared}: give each group its own 'stages'"
                    )
        return self

    @model_validator(mode="after")
    def _paths_are_all_that_changes(self) -> AttentionConfig:
        if self.search is not None and self.progressive is not None:
            raise ValueError(
                "search and progressive both say which layers are on at a step: leave one of them out, and set "
                "progressive in the recipe that the search finds"
            )
        if self.search is not None and self.regularize:
            raise ValueError(
                "search and regularize: at a step without attention there is nothing to look at; leave one of them "
                "out, and set regularize in the recipe that the search finds"
            )
        return self


def _shared_stages(stages: Stages, others: Stages) -> str:
    """The stages that both name, for people; empty where there are none."""
    if stages == "all":
        return "all" if others == "all" else ", ".join(map(str, sorted({*others} - {0})))
    if others == "all":
        return _shared_stages(others, stages)
    return ", ".join(map(str, sorted({*stages} & {*others})))
