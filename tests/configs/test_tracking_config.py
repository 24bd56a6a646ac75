"""The `tracking` section of a recipe."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from configs.training import TrackingConfig


@pytest.mark.parametrize("name", ["flowers/vit", "flowers:1", "flower's", " "])
def test_names_that_no_registered_model_can_have_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"none of / : ' \" `, not"):
        TrackingConfig(registry=name)
    assert TrackingConfig(registry="flowers vit-tiny_2.0").registry == "flowers vit-tiny_2.0"


def test_an_unquoted_off_is_the_word() -> None:
    assert TrackingConfig.model_validate({"uri": False}).uri == "off"
