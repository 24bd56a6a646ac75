"""The chart's arithmetic, and what it draws."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.results.chart import Point, Series, line_chart, nice_ticks, short_number


def _draw(points: list[Point], label: str = "run") -> ElementTree.Element:
    svg = line_chart([Series(label=label, color=0, points=points)], title="t", x_label="step", y_label="loss")
    return ElementTree.fromstring(svg)


def _of_class(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


@settings(deadline=None)
@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), most=st.integers(3, 9))
def test_ticks_are_few_even_and_within_the_range(low: float, width: float, most: int) -> None:
    ticks = nice_ticks(low, low + width, most)
    assert 1 <= len(ticks) <= most + 1
    slack = 1e-6 * max(1.0, abs(low), width)
    assert low - slack <= ticks[0] <= ticks[-1] <= low + width + slack
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (84.2, "84.2"), (0.0312, "0.0312"), (1234, "1,234"), (999_949, "999,949"), (999_960, "1 M"),
     (98_400_000, "98.4 M"), (3.1e9, "3.1 G"), (-5, "-5"), (1e-5, "1e-05")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_every_point_of_a_short_line_is_drawn() -> None:
    (line,) = _of_class(_draw([(0, 1.0), (1, 3.0), (2, 2.0)]), "line")
    heights = [float(pair.split(",")[1]) for pair in line.get("points", "").split()]
    assert len(heights) == 3
    assert heights[1] < heights[2] < heights[0]  # upwards is smaller


def test_a_long_line_is_averaged_and_keeps_its_extremes_as_a_band() -> None:
    svg = _draw([(float(step), float(step % 10)) for step in range(5000)])
    (line,) = _of_class(svg, "line")
    assert 50 < len(line.get("points", "").split()) <= 160
    assert len(_of_class(svg, "band")) == 1


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(0.0, math.inf), (1.0, -math.inf)]])
def test_nothing_finite_is_no_chart(points: list[Point]) -> None:
    line = Series(label="run", color=0, points=points)
    assert line_chart([line], title="t", x_label="step", y_label="loss") == ""


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_a_constant_or_a_single_point_is_drawn(value: float) -> None:
    assert _of_class(_draw([(3.0, value)]), "end")
    assert _of_class(_draw([(0.0, value), (9.0, value)]), "line")


def test_a_gap_of_values_that_are_not_finite_is_bridged() -> None:
    (line,) = _of_class(_draw([(0, 1.0), (1, math.nan), (2, 2.0)]), "line")
    assert len(line.get("points", "").split()) == 2


def test_labels_are_escaped() -> None:
    svg = _draw([(0, 1.0), (1, 2.0)], label="<script>&")
    assert any(title.text == "<script>&, step 1: 2" for title in svg.iter("title"))
