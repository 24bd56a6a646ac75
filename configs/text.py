"""What stands beside a network that looks at images: one that reads, and the space in which both meet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.base import Section

TEXT_OBJECTIVES = frozenset({"siglip"})
"""Names of objectives that learn from captions: a training image without one is left out."""


class TextConfig(Section):
    """A Transformer over the tokens of a caption; the defaults are those beside a ViT-B (Zhai et al. 2023)."""

    width: int = Field(default=768, ge=1)
    layers: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    context_length: int = Field(default=64, ge=3)
    """Tokens of a caption, its begin and end among them; what is longer is cut off, what is shorter filled up."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


def _names_a_class(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"write the class once as {{}}, as in 'a photo of a {{}}.', not {template!r}")
    return template


class PairingConfig(Section):
    """How the vectors of images and captions are made and compared."""

    embed_dim: int = Field(default=768, ge=1)
    """Width of the space in which images and captions are compared."""
    text: TextConfig = TextConfig()
    pool: Literal["network", "attention"] = "network"
    """How tokens become a vector: as the network pools them, or by cross-attention from a learned query."""
    pool_heads: int = Field(default=8, ge=1)
    """Heads of that cross-attention."""
    scale: float = Field(default=10.0, gt=0.0)
    """What cosines are multiplied by at first; learned, as its logarithm."""
    bias: float = -10.0
    """What is added to them at first; learned. Of all pairs few belong together, and at first none is believed to."""
    prompts: tuple[Annotated[str, AfterValidator(_names_a_class)], ...] = Field(
        default=("a photo of a {}.",), min_length=1
    )
    """What a class of ``data.val`` is called in evaluation; of several the mean direction counts."""
