"""The curves of a report: one chart per quantity over all runs; each run's students, and the parts of its loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.results.chart import Point, Series, line_chart
from engine.results.run_record import RunRecord

NUM_COLORS = 8
_PERCENT = 100.0
_OF_STUDENT = re.compile(r"val/([a-z][a-z0-9_]*)/top1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """An SVG and what its colours mean, where it does not follow the legend of the runs."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, int]] = ()


def draw_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Those that have anything to show."""
    return [
        *_shared_charts(runs, _FIRST),
        *_student_charts(runs),
        *_part_charts(runs),
        *_shared_charts(runs, _FURTHER),
    ]


_Quantity = tuple[str, str, str, float, bool]
"""Title, series, label of the values, what they are multiplied by, whether the axis begins at zero."""

_FIRST: Sequence[_Quantity] = (
    ("Validation accuracy", "val/top1", "top-1, %", 1.0, False),
    ("Linear probe", "val/probe_top1", "top-1, %", 1.0, False),
    ("Training loss", "train/loss", "loss", 1.0, False),
)
_FURTHER: Sequence[_Quantity] = (
    ("Validation accuracy without averaging", "val_raw/top1", "top-1, %", 1.0, False),
    ("Nearest neighbours", "val/knn_top1", "top-1, %", 1.0, False),
    ("Validation loss", "val/loss", "loss", 1.0, False),
    ("Calibration error", "val/ece", "ECE", 1.0, True),
    ("Agreement of maps with the teacher's", "val/map_correlation", "Pearson's r", 1.0, False),
    ("Looking where the teacher looks", "val/map_pointing", "% of images", _PERCENT, False),
    ("Learning rate", "train/lr", "learning rate", 1.0, True),
    ("Gradient norm", "train/grad_norm", "norm", 1.0, True),
    ("Throughput", "perf/images_per_s", "images/s", 1.0, True),
    ("Waiting for data", "perf/data_wait_fraction", "% of the time", _PERCENT, True),
)


def _shared_charts(runs: Sequence[RunRecord], quantities: Sequence[_Quantity]) -> list[Chart]:
    """One chart per quantity, one line per run."""
    charts = []
    for title, key, y_label, factor, from_zero in quantities:
        lines = [
            Series(
                label=run.name,
                color=index % NUM_COLORS,
                points=[(x, factor * y) for x, y in run.series.get(key, ())],
            )
            for index, run in enumerate(runs)
        ]
        svg = line_chart(lines, title=title, x_label="step", y_label=y_label, from_zero=from_zero)
        if svg:
            charts.append(Chart(title=title, svg=Markup(svg)))
    return charts


def _part_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """For each run whose loss has parts, those parts."""
    return [
        chart
        for run in runs
        for chart in _lines_of(
            {key.removeprefix("train/"): run.series[key] for key in run.loss_parts},
            title=f"Loss of {run.name}, part by part",
            y_label="loss",
            from_zero=True,
        )
    ]


def _student_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """For each run of several students, all of them."""
    charts = []
    for run in runs:
        others = {found[1]: key for key in run.series if (found := _OF_STUDENT.fullmatch(key))}
        lines = {
            name: run.series[key]
            for name, key in {"the run's own": "val/top1", **others}.items()
            if key in run.series
        }
        if others:
            title = f"Validation accuracy of {run.name}, student by student"
            charts += _lines_of(lines, title=title, y_label="top-1, %", from_zero=False)
    return charts


def _lines_of(
    lines: Mapping[str, Sequence[Point]], *, title: str, y_label: str, from_zero: bool
) -> list[Chart]:
    """A chart with a legend of its own; none where there is nothing to show."""
    drawn = [
        Series(label=name, color=index % NUM_COLORS, points=points)
        for index, (name, points) in enumerate(lines.items())
    ]
    svg = line_chart(drawn, title=title, x_label="step", y_label=y_label, from_zero=from_zero)
    if not svg:
        return []
    return [Chart(title=title, svg=Markup(svg), legend=[(line.label, line.color) for line in drawn])]
