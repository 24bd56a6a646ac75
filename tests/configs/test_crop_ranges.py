"""Ranges of crops: percents, turned ends and nothing at all are said before a run is without augmentation."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from configs.data import AugmentConfig, ViewConfig


@pytest.mark.parametrize("scale", [[8, 100], [0.5, 1.1]])
def test_more_than_the_whole_image_is_refused(scale: list[float]) -> None:
    for build in (AugmentConfig, lambda **given: ViewConfig(size=8, **given)):
        with pytest.raises(ValidationError, match="goes beyond the whole image: write fractions of its area"):
            build(scale=scale)


@pytest.mark.parametrize(
    "given", [{"scale": [-1, 1]}, {"scale": [0, 1]}, {"ratio": [0, 1]}, {"ratio": [1.3, 0.7]}]
)
def test_what_is_no_range_above_zero_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is no range above 0: give the smaller first"):
        AugmentConfig(**given)


def test_a_range_of_one_value_is_one() -> None:
    assert AugmentConfig(scale=(1.0, 1.0), ratio=(2.0, 2.0)).ratio == (2.0, 2.0)
