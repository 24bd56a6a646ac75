"""A picture for each thing a comparison says: reliability, confusion, corruptions; matplotlib's Agg, no display."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.results.class_scores import NO_CLASS
from finetune.evaluating.comparison import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_PANEL = 3.0
_PER_LINE = 4
_MOST_NAMES, _MOST_NUMBERS = 40, 12
_INK, _PALE, _BAR, _GAP = "#1f2328", "#6e7781", "#2463c9", "#d1650c"


def draw_pictures(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Writes the PNGs and gives them by title."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"Reliability": _save(_reliability(comparison.rows), folder / "reliability.png")}
    for row in comparison.rows:
        file = folder / f"confusion-{re.sub(r'[^A-Za-z0-9._-]+', '-', row.name).strip('-.')}.png"
        drawn[f"Confusion of {row.name}"] = _save(_confusion(row), file)
    if any(row.corruptions for row in comparison.rows):
        drawn["Corruptions"] = _save(_corruptions(comparison.rows), folder / "corruptions.png")
    return drawn


def confusion_matrix(row: Row) -> NDArray[np.int64]:
    """[true, predicted]; a last column where images were taken for no class (NO_CLASS, which is its index too)."""
    columns = len(row.classes) + any(predicted == NO_CLASS for _, predicted, _ in row.confusions)
    matrix = np.zeros((len(row.classes), columns), np.int64)
    for true, predicted, count in row.confusions:
        matrix[true, predicted] = count
    return matrix


def _reliability(rows: Sequence[Row]) -> Figure:
    figure, panels = _panels(len(rows))
    for axes, row in zip(panels, rows, strict=True):
        edges = np.linspace(0, 1, len(row.reliability) + 1)
        centres, width = (edges[:-1] + edges[1:]) / 2, 1 / len(row.reliability)
        total = sum(part.num_images for part in row.reliability)
        share = [part.num_images / total for part in row.reliability]
        axes.bar(centres, share, width, color="#d8dee6", label="share of images")
        full = [place for place, part in enumerate(row.reliability) if part.num_images]
        confidence = [row.reliability[place].confidence for place in full]
        accuracy = [row.reliability[place].accuracy for place in full]
        axes.plot([0, 1], [0, 1], color=_PALE, linewidth=1, linestyle="--")
        axes.vlines(confidence, confidence, accuracy, color=_GAP, linewidth=2, label="gap")
        axes.plot(confidence, accuracy, color=_BAR, marker="o", markersize=4, label="accuracy")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.set_title(f"{row.name}: ECE {row.ece:.4f}", fontsize=9, color=_INK)
    panels[0].legend(fontsize=7, frameon=False)
    return figure


def _confusion(row: Row) -> Figure:
    from matplotlib.figure import Figure

    matrix, names = confusion_matrix(row), [found.name for found in row.classes]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3.2 + 0.32 * min(len(names), _MOST_NAMES)
    figure = Figure(figsize=(side + 0.6, side), dpi=_DPI, layout="constrained")
    axes: Axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{row.name}: top-1 {row.top1:.2f} %", fontsize=10, color=_INK)
    if len(names) <= _MOST_NAMES:
        columns = [*names, "no class"][: matrix.shape[1]]
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= _MOST_NUMBERS:
        for (true, predicted), count in np.ndenumerate(matrix):
            colour = "white" if shares[true, predicted] > 0.5 else _INK
            axes.text(predicted, true, str(count), ha="center", va="center", fontsize=6.5, color=colour)
    return figure


def _corruptions(rows: Sequence[Row]) -> Figure:
    names = next(tuple(row.corruptions) for row in rows if row.corruptions)
    figure, panels = _panels(len(names), height=2.2)
    for axes, name in zip(panels, names, strict=True):
        for row in rows:
            values = (row.top1, *row.corruptions[name])
            axes.plot(range(len(values)), values, marker="o", markersize=3, label=row.name)
        axes.set(ylim=(0, 100), xticks=range(6), xlabel="severity", ylabel="top-1, %")
        axes.set_title(name.replace("_", " "), fontsize=9, color=_INK)
    panels[0].legend(fontsize=7, frameon=False)
    return figure


def _panels(count: int, *, height: float = _PANEL) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, _PER_LINE)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(_PANEL * columns + 0.4, height * lines + 0.3), dpi=_DPI, layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    for panel in axes:
        panel.tick_params(labelsize=7)
        panel.xaxis.label.set_fontsize(8)
        panel.yaxis.label.set_fontsize(8)
    return figure, axes[:count]


def _save(figure: Figure, path: Path) -> Path:
    aside = path.with_name(f".{path.name}.part")
    figure.savefig(aside, format="png")
    aside.replace(path)
    return path
