"""Preprocessing: how a network wants its images resized and cropped, from what timm keeps about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Preprocessing(NamedTuple):
    """In the terms of a recipe's `data` section."""

    interpolation: Literal["bilinear", "bicubic"]
    eval_crop: float | None
    """None: the whole image, squeezed into a square."""


def preprocessing_of(facts: Mapping[str, Any]) -> Preprocessing:
    """From a ``pretrained_cfg``; what Mirada cannot do becomes the nearest that it can.

    timm's filters beyond bilinear and bicubic are rare (nearest, lanczos), and so are crops other than of the centre.
    """
    is_central = facts.get("crop_mode", "center") == "center"
    return Preprocessing(
        interpolation="bilinear" if facts.get("interpolation") == "bilinear" else "bicubic",
        eval_crop=min(1.0, float(facts.get("crop_pct") or 0.875)) if is_central else None,
    )
