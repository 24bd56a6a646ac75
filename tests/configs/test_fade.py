"""configs.fade: where a weight is at each step."""

from __future__ import annotations

import pytest

from configs.base import Duration
from configs.fade import Fade


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("linear", [4.0, 3.0, 2.0, 1.0, 0.0]), ("cosine", [4.0, 3.4142, 2.0, 0.5858, 0.0])],
)
def test_it_goes_from_the_weight_to_the_other_and_stays(shape: str, expected: list[float]) -> None:
    fade = Fade.model_validate({"to": 0.0, "over": "8 steps", "shape": shape})
    found = [fade.weight(4.0, step, over_steps=8) for step in (0, 2, 4, 6, 8)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert fade.weight(4.0, 1000, over_steps=8) == 0.0


def test_it_may_rise_and_may_take_no_time() -> None:
    fade = Fade(to=3.0, over=Duration(2, "steps"))
    assert [fade.weight(1.0, step, over_steps=2) for step in (0, 1, 2)] == [1.0, 2.0, 3.0]
    assert fade.weight(1.0, 0, over_steps=0) == 3.0
