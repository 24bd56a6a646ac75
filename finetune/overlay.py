"""Pictures of where networks look: image | map of each network over it, drawn with matplotlib's Agg and no display."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL, _GAP, _BLOCK_GAP, _CAPTION, _HEADER, _FOOTER, _MARGIN = 1.45, 0.07, 0.42, 0.25, 0.52, 0.17, 0.16
_DPI = 160
_CHARACTERS_PER_INCH = 18.0  # of the note at its size
_ROWS_PER_BLOCK = 5
_CANVAS = 256
_INK, _PALE, _RIGHT, _WRONG = "#1f2328", "#6e7781", "#1a7f37", "#cf222e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What stands beneath one picture; `correct` colours it, None leaves it plain."""

    text: str
    correct: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One network over all images."""

    title: str
    subtitle: str
    maps: Tensor
    """[N, h, w], any scale: each map is drawn from its own least to its own greatest value."""
    panels: tuple[Panel, ...]


def draw_overlays(
    images: NDArray[np.uint8], labels: Sequence[Panel], columns: Sequence[Column], path: Path, *, note: str
) -> None:
    """Writes one PNG: a row per image [N, S, S, C], in two blocks side by side when there are many."""
    from matplotlib.figure import Figure

    num_blocks = 1 if len(images) <= _ROWS_PER_BLOCK + 1 else 2
    num_rows = math.ceil(len(images) / num_blocks)
    block_width = (1 + len(columns)) * (_PANEL + _GAP) - _GAP
    width = num_blocks * block_width + (num_blocks - 1) * _BLOCK_GAP + 2 * _MARGIN
    lines = textwrap.wrap(note, width=int(_CHARACTERS_PER_INCH * (width - 2 * _MARGIN)))
    height = _HEADER + num_rows * (_PANEL + _CAPTION) + _FOOTER * len(lines) + _MARGIN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    for block in range(num_blocks):
        left = _MARGIN + block * (block_width + _BLOCK_GAP)
        _write_headers(figure, left, columns)
        for row, index in enumerate(range(block * num_rows, min((block + 1) * num_rows, len(images)))):
            top = _HEADER + row * (_PANEL + _CAPTION)
            _draw_row(figure, (left, top), images[index], labels[index], columns, index)
    for number, line in enumerate(lines):
        _write(
            figure,
            _MARGIN,
            height - _FOOTER * (len(lines) - number - 0.4),
            line,
            size=7.0,
            color=_PALE,
            align="left",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    figure.savefig(aside, format="png")
    aside.replace(path)


def blend(image: NDArray[np.uint8], attention: Tensor) -> NDArray[np.float32]:
    """An image [S, S, C] with a map [h, w] over it, [256, 256, 3] in 0..1: the more attention, the more colour."""
    from matplotlib import colormaps

    grey = _to_canvas(image).mean(axis=2, keepdims=True)
    heat = _stretch(attention)
    colour = np.asarray(colormaps["inferno"](0.1 + 0.85 * heat), dtype=np.float32)[..., :3]
    strength = (0.2 + 0.6 * heat)[..., None]
    blended: NDArray[np.float32] = (0.92 * (1 - strength) * grey + strength * colour).astype(np.float32)
    return blended.clip(0, 1)


def _draw_row(
    figure: Figure,
    corner: tuple[float, float],
    image: NDArray[np.uint8],
    label: Panel,
    columns: Sequence[Column],
    index: int,
) -> None:
    left, top = corner
    _draw_panel(figure, left, top, _to_canvas(image), label)
    for number, column in enumerate(columns, start=1):
        picture = blend(image, column.maps[index])
        _draw_panel(figure, left + number * (_PANEL + _GAP), top, picture, column.panels[index])


def _draw_panel(figure: Figure, left: float, top: float, picture: NDArray[np.float32], panel: Panel) -> None:
    width, height = figure.get_size_inches()
    axes: Axes = figure.add_axes((left / width, 1 - (top + _PANEL) / height, _PANEL / width, _PANEL / height))
    axes.imshow(picture, interpolation="antialiased")
    axes.set_axis_off()
    color = {True: _RIGHT, False: _WRONG, None: _INK}[panel.correct]
    _write(figure, left + _PANEL / 2, top + _PANEL + 0.105, _shortened(panel.text), size=7.6, color=color)


def _write_headers(figure: Figure, left: float, columns: Sequence[Column]) -> None:
    heads = [("image", ""), *((column.title, column.subtitle) for column in columns)]
    for number, (title, subtitle) in enumerate(heads):
        center = left + number * (_PANEL + _GAP) + _PANEL / 2
        _write(figure, center, 0.2, _shortened(title, 22), size=9.5, color=_INK, weight="bold")
        _write(figure, center, 0.385, _shortened(subtitle, 34), size=6.6, color=_PALE)


def _write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str,
    align: str = "center",
    **font: Any,
) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, ha=align, va="center", fontsize=size, color=color, **font)


def _shortened(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else f"…{text[-limit + 1 :]}"


def _to_canvas(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB in 0..1; small images keep their pixels as squares, so that nothing is shown that was not there."""
    size = max(_CANVAS, image.shape[0])
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255
    scaled = F.interpolate(pixels, (size, size), mode="nearest-exact")[0].permute(1, 2, 0)
    return scaled.expand(-1, -1, 3).numpy()


def _stretch(attention: Tensor, size: int = _CANVAS) -> NDArray[np.float32]:
    """0..1 over the map's own range, smooth between grid points."""
    grid = attention.float().cpu()[None, None]
    smooth = F.interpolate(grid, (size, size), mode="bicubic", align_corners=False)[0, 0]
    low, high = smooth.min(), smooth.max()
    # Below a thousandth of the values themselves, differences are rounding and not worth a colour.
    contrast = (high - low).clamp_min(1e-3 * float(high.abs()) + 1e-30)
    stretched: NDArray[np.float32] = ((smooth - low) / contrast).numpy()
    return stretched
