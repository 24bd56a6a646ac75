"""What of a network a fine-tuning run trains: the `mode` section, one member for each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Section
from configs.training import ProbeConfig


class FullMode(Section):
    """All weights; `optim.layer_decay` lets those next to the input learn more slowly."""

    name: Literal["full"] = "full"


class LinearProbeMode(Section):
    """The classifier alone; everything before it is frozen, the statistics of batch norm too."""

    name: Literal["linear_probe"]


class LastBlocksMode(Section):
    """The last blocks and all that comes behind them."""

    name: Literal["last_blocks"]
    count: int = Field(ge=1)
    """Blocks, of the layers that timm counts from the stem to the classifier."""


class LoraMode(Section):
    """Low-rank updates of the linear projections in attention (Hu et al. 2022), and the classifier; needs peft.

    The release has them added to the projections, so that plain timm loads it.
    """

    name: Literal["lora"]
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0.0)
    """An update counts alpha / rank times."""


class KnnMode(Section):
    """Nothing is trained: the features are scored by the labels of their neighbours, and by a linear classifier."""

    name: Literal["knn"]
    probe: ProbeConfig = ProbeConfig()


Mode = Annotated[
    FullMode | LinearProbeMode | LastBlocksMode | LoraMode | KnnMode,
    Field(discriminator="name"),
]
