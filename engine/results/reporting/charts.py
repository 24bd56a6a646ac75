"""The curves of a report: one chart per quantity over all runs, and the parts of each run's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.results.chart import Series, line_chart
from engine.results.run_record import RunRecord

NUM_COLORS = 8
_PERCENT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """An SVG and what its colours mean, where it does not follow the legend of the runs."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, int]] = ()


def draw_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Those that have anything to show."""
    return [*_shared_charts(runs, _FIRST), *_part_charts(runs), *_shared_charts(runs, _FURTHER)]


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
    charts = []
    for run in runs:
        names = [key.removeprefix("train/") for key in run.loss_parts]
        lines = [
            Series(label=name, color=i % NUM_COLORS, points=run.series[f"train/{name}"])
            for i, name in enumerate(names)
        ]
        title = f"Loss of {run.name}, part by part"
        svg = line_chart(lines, title=title, x_label="step", y_label="loss", from_zero=True)
        if svg:
            legend = [(line.label, line.color) for line in lines]
            charts.append(Chart(title=title, svg=Markup(svg), legend=legend))
    return charts
