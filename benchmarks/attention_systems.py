"""The rows of benchmarks/attention.py: which network, and what is added to it.

What does not go together is not there: merged tokens leave no windows (Swin, two stages), and two stages have no rows
over all tokens for the penalties. The gates of "random" and "searched" are those that benchmarks/search.py found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NETWORKS = "benchmarks/attention_networks"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A row of the table."""

    title: str
    network: str
    """Recipe in benchmarks/attention_networks; rows of one network have one colour in the figure."""
    base: str | None = None
    """The row whose errors it is to save; None: it is one that others are held against."""
    settings: tuple[str, ...] = ()
    """What it adds to the network."""

    @property
    def recipe(self) -> str:
        """Of its network."""
        return f"{_NETWORKS}/{self.network}.yaml"


_PROGRESSIVE = "model.attention.progressive={over: 1.5 epochs, start: 1}"
_REGULARIZED = (
    "model.attention.regularize="
    "[{name: entropy, weight: 0.1, floor: 0.7}, {name: head_diversity, weight: 0.1}]"
)
_FLOAT8 = "model.attention.kernel=float8"
_DYNAMIC = "model.attention.dynamic={threshold: 0.9}"
_TWO_STAGE = "model.attention.two_stage={window: 4, num_global: 4, subset: strided}"

SYSTEMS: Mapping[str, System] = {
    "cnn": System(title="ResNet", network="cnn"),
    "lrn": System(
        title="+ local response normalization",
        network="cnn",
        base="cnn",
        settings=("model.attention.gates={name: lrn, stages: [0, 1]}",),
    ),
    "se": System(
        title="+ squeeze-and-excitation",
        network="cnn",
        base="cnn",
        settings=("model.attention.gates={name: se, reduction: 16}",),
    ),
    "eca": System(title="+ ECA", network="cnn", base="cnn", settings=("model.attention.gates={name: eca}",)),
    "cbam": System(
        title="+ CBAM",
        network="cnn",
        base="cnn",
        settings=("model.attention.gates={name: cbam, reduction: 16}",),
    ),
    "random": System(title="+ drawn at random, another for each seed", network="cnn", base="cnn"),
    "searched": System(title="+ searched", network="cnn", base="cnn"),
    "vit": System(title="ViT", network="vit"),
    "vit_progressive": System(title="ViT, progressive", network="vit", base="vit", settings=(_PROGRESSIVE,)),
    "vit_regularized": System(title="ViT, regularized", network="vit", base="vit", settings=(_REGULARIZED,)),
    "vit_float8": System(title="ViT, float8", network="vit", base="vit", settings=(_FLOAT8,)),
    "vit_dynamic": System(title="ViT, dynamic tokens", network="vit", base="vit", settings=(_DYNAMIC,)),
    "swin": System(title="Swin", network="swin"),
    "swin_progressive": System(
        title="Swin, progressive", network="swin", base="swin", settings=(_PROGRESSIVE,)
    ),
    "swin_regularized": System(
        title="Swin, regularized", network="swin", base="swin", settings=(_REGULARIZED,)
    ),
    "swin_float8": System(title="Swin, float8", network="swin", base="swin", settings=(_FLOAT8,)),
    "two_stage": System(title="two-stage ViT", network="vit", base="vit", settings=(_TWO_STAGE,)),
    "two_stage_progressive": System(
        title="two-stage ViT, progressive",
        network="vit",
        base="two_stage",
        settings=(_TWO_STAGE, _PROGRESSIVE),
    ),
    "two_stage_float8": System(
        title="two-stage ViT, float8", network="vit", base="two_stage", settings=(_TWO_STAGE, _FLOAT8)
    ),
}

DISTILLED: Mapping[str, System] = {
    "none": System(title="small SE-ResNet, no teacher", network="student"),
    "both": System(title="small SE-ResNet, distilled", network="student", base="none"),
}
"""Rows of benchmarks/distill.py that stand below these: its student on all labels."""
