"""Sheet: rows of images of one size under captions, as a PNG for people to look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.pixels.decode import DecodeError, Pixels, crop_resize, decode

TILE = 96
_CAPTION_HEIGHT = 18
_GAP = 4
_WHITE, _GREY = 255, 224
_RED = (200, 30, 30)
_MAX_SIDE = 32_000
"""Of a sheet, in pixels: what viewers open."""


class Sheet:
    """Rows of at most `columns` square tiles each, drawn in the order they are added."""

    def __init__(self, *, columns: int, tile: int = TILE, gap: int = 0) -> None:
        self._columns, self._tile, self._gap = columns, tile, gap
        self._rows: list[Pixels] = []

    def add_row(self, caption: str | list[str], tiles: list[Pixels]) -> None:
        """Up to `columns` tiles below one line of text, or each below its own."""
        step = self._tile + self._gap
        row = np.full((_CAPTION_HEIGHT + step, self._columns * step - self._gap, 3), _WHITE, np.uint8)
        if isinstance(caption, str):
            _write_text(row[:_CAPTION_HEIGHT], caption)
        else:
            for place, text in enumerate(caption):
                _write_text(row[:_CAPTION_HEIGHT, place * step : place * step + self._tile], text)
        for place, tile in enumerate(tiles):
            left = place * step
            row[_CAPTION_HEIGHT : _CAPTION_HEIGHT + self._tile, left : left + self._tile] = tile
        self._rows.append(row)

    def write(self, file: Path) -> None:
        """The PNG; folders on the way are made."""
        check_name(file)
        sheet = np.concatenate(self._rows)
        if max(sheet.shape) > _MAX_SIDE:
            raise DataError(
                f"{file}: a sheet of {sheet.shape[1]} x {sheet.shape[0]} pixels is more than {_MAX_SIDE} on a side"
            )
        _, encoded = cv2.imencode(".png", sheet[:, :, ::-1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded.tobytes())


def check_name(file: Path) -> None:
    """DataError unless a file is to be a PNG: said before the work that fills it."""
    if file.suffix.lower() != ".png":
        raise DataError(f"{file}: a contact sheet is a PNG; give a name that ends in .png")


def centred_square(encoded: bytes, side: int = TILE) -> Pixels:
    """An image's largest centred square as a tile; a damaged image is a red one."""
    try:
        image = decode(encoded, channels=3)
    except DecodeError:
        return _damaged(side)
    height, width = image.shape[:2]
    smaller = min(height, width)
    tile: Pixels = np.empty((side, side, 3), np.uint8)
    crop_resize(image, ((width - smaller) // 2, (height - smaller) // 2, smaller, smaller), tile)
    return tile


def whole_image(encoded: bytes, side: int = TILE) -> Pixels:
    """All of an image in a tile, what is left over grey; a damaged image is a red tile."""
    try:
        image = decode(encoded, channels=3)
    except DecodeError:
        return _damaged(side)
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    shrunk = cv2.resize(image, size, interpolation=method)
    tile = np.full((side, side, 3), _GREY, np.uint8)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    tile[top : top + size[1], left : left + size[0]] = shrunk
    return tile


def exact_tile(image: Pixels, side: int) -> Pixels:
    """Pixels [S, S, C] as they are, each repeated a whole number of times to fill `side`."""
    times = side // len(image)
    enlarged = np.repeat(np.repeat(image, times, axis=0), times, axis=1)
    return np.broadcast_to(enlarged, (side, side, 3))


def exact_side(size: int) -> int:
    """The side of tiles that show squares of this size exactly: a multiple of it, near TILE or above."""
    return size * max(1, TILE // size)


def _write_text(strip: Pixels, text: str) -> None:
    """Text into a strip of a sheet; what does not fit is cut."""
    drawn = np.ascontiguousarray(strip)
    readable = text.encode("ascii", "replace").decode()
    cv2.putText(drawn, readable, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    strip[:] = drawn


def _damaged(side: int) -> NDArray[np.uint8]:
    return np.full((side, side, 3), _RED, np.uint8)
