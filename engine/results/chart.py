"""A line chart as inline SVG: no library, colours from the page's style sheet, to follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 480, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 50, 14, 38
_LABEL_HEIGHT = 12
_MOST_POINTS = 160
"""More are averaged in as many groups, with a band from the least to the greatest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, the number of its colour, and its points in order."""

    label: str
    color: int
    points: Sequence[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Neighbouring points drawn as one."""

    x: float
    mean: float
    low: float
    high: float


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, from_zero: bool = False
) -> str:
    """The chart as an ``<svg>`` element; empty if there is nothing finite to draw."""
    grouped = [(one, _group(one.points)) for one in series]
    grouped = [(one, groups) for one, groups in grouped if groups]
    if not grouped:
        return ""
    every = [group for _, groups in grouped for group in groups]
    x_low, x_high = _range([0.0, *(g.x for g in every)])
    y_low, y_high = _range([g.low for g in every] + [g.high for g in every] + [0.0] * from_zero)
    margin = 0.04 * (y_high - y_low)
    x = _Scale(low=x_low, high=x_high, start=_LEFT, end=_WIDTH - _RIGHT)
    y = _Scale(low=y_low - margin * (y_low != 0), high=y_high + margin, start=_HEIGHT - _BOTTOM, end=_TOP)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _axes(x, y, x_label, y_label)
    parts += [_line(one, groups, x, y) for one, groups in grouped]
    parts += _end_labels(grouped, x, y)
    parts += [_hover_points(one, groups, x, y) for one, groups in grouped]
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within `low` to `high`, at most `most` steps from one another."""
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short_number(value: float) -> str:
    """For people: 1,234, 84.2, 0.0312, 1.2e-05, 3.1 M."""
    size = abs(value)
    if size >= 999_950:
        scale, suffix = next(
            pair for pair in ((1e12, " T"), (1e9, " G"), (1e6, " M")) if size >= pair[0] * 0.99995
        )
        return f"{value / scale:.3g}{suffix}"
    if size >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest, set apart if they are the same."""
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    return (0.0, 2 * high) if high > 0 else (low - 1.0, high + 1.0)


def _group(points: Sequence[Point]) -> list[_Group]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / _MOST_POINTS))
    groups = []
    for start in range(0, len(finite), size):
        xs, ys = zip(*finite[start : start + size], strict=True)
        groups.append(_Group(x=xs[-1], mean=sum(ys) / len(ys), low=min(ys), high=max(ys)))
    return groups


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in nice_ticks(y.low, y.high, 6):
        height = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(_text("tick", _LEFT - 8, y(tick) + 4, short_number(tick), anchor="end"))
    bottom = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for tick in nice_ticks(x.low, x.high, 7):
        parts.append(_text("tick", x(tick), bottom + 16, short_number(tick)))
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + bottom) / 2
    parts.append(_text("label", middle_x, _HEIGHT - 5, x_label))
    parts.append(f'<g transform="translate(10 {middle_y}) rotate(-90)">{_text("label", 0, 0, y_label)}</g>')
    return parts


def _text(kind: str, x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(series: Series, groups: Sequence[_Group], x: _Scale, y: _Scale) -> str:
    path = " ".join(f"{x(g.x):.1f},{y(g.mean):.1f}" for g in groups)
    line = f'<polyline class="line c{series.color}" points="{path}"/>'
    if all(g.low == g.high for g in groups):
        return line
    upper = [f"{x(g.x):.1f},{y(g.high):.1f}" for g in groups]
    lower = [f"{x(g.x):.1f},{y(g.low):.1f}" for g in reversed(groups)]
    return f'<polygon class="band c{series.color}" points="{" ".join(upper + lower)}"/>{line}'


def _end_labels(grouped: Sequence[tuple[Series, Sequence[_Group]]], x: _Scale, y: _Scale) -> list[str]:
    """The last value at the end of each line: moved apart where lines end close, once where equal."""
    ends = sorted(
        (y(groups[-1].mean), x(groups[-1].x), one.color, groups[-1].mean) for one, groups in grouped
    )
    parts = []
    below, beside, above = -math.inf, -math.inf, ""
    for height, right, color, value in ends:
        text = short_number(value)
        parts.append(f'<circle class="end c{color}" cx="{right:.1f}" cy="{height:.1f}" r="3"/>')
        is_close = height < below + _LABEL_HEIGHT and abs(right - beside) < _RIGHT
        if is_close and text == above:
            continue
        below = below + _LABEL_HEIGHT if is_close else height
        beside, above = right, text
        parts.append(_text(f"value c{color}", right + 7, below + 4, text, anchor="start"))
    return parts


def _hover_points(series: Series, groups: Sequence[_Group], x: _Scale, y: _Scale) -> str:
    """Points that appear under the mouse and say what they are; about forty per line."""
    every = max(1, len(groups) // 40)
    return "".join(
        f'<circle class="point c{series.color}" cx="{x(g.x):.1f}" cy="{y(g.mean):.1f}" r="5">'
        f"<title>{escape(series.label)}, step {g.x:,.0f}: {short_number(g.mean)}</title></circle>"
        for g in groups[::every]
    )
