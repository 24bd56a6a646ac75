"""The part of a JPEG that a crop needs, as a JPEG of its own; for files with restart markers.

Entropy codes can be entered at their beginning and behind a restart marker only (ITU-T T.81, section E.2.4): of other
files everything is read that lies above a crop or beside it. Where there are markers at the same places of each row
(`mirada data build --restart-markers`), the pieces between them that the crop touches are put together behind a header
that gives their size. No pixel changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.pixels.jpeg_frame import JpegFrame, read_frame

_END = b"\xff\xd9"
_RESTART = b"\xff\xd0"
_WORTHWHILE = 0.9
"""Share of the pieces down to a crop's last row above which it is quicker to read them all where they are."""

_Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A JPEG, and where it lies in the one it was cut from."""

    data: bytes
    left: int
    top: int
    size: tuple[int, int]
    """Height and width."""


def cut(data: bytes, box: tuple[int, int, int, int], *, context: int) -> Excerpt | None:
    """What decoding `box` (left, top, right, bottom) takes, and at least `context` pixels around it.

    None where there is little to leave out, where there are no restart markers or not at the same places of each row,
    and where the file is not as its header says.
    """
    frame = read_frame(data)
    if frame is None or not frame.is_one_scan or not frame.interval or frame.units_per_row % frame.interval:
        return None
    per_row, width, height = (
        frame.units_per_row // frame.interval,
        frame.unit_width * frame.interval,
        frame.unit_height,
    )
    left, top, right, bottom = box
    first, last = max(0, left - context) // width, min(per_row, -(-(right + context) // width))
    upper, lower = max(0, top - context) // height, min(frame.unit_rows, -(-(bottom + context) // height))
    if (last - first) * (lower - upper) >= _WORTHWHILE * per_row * lower:
        return None
    pieces = _pieces(data, frame.codes_at, per_row * frame.unit_rows)
    if pieces is None:
        return None
    starts, stops = (places.reshape(-1, per_row)[upper:lower, first:last] for places in pieces)
    x, y = first * width, upper * height
    size = (min(frame.height, lower * height) - y, min(frame.width, last * width) - x)
    return Excerpt(_joined(data, _header(data, frame, size), starts, stops), x, y, size)


def _header(data: bytes, frame: JpegFrame, size: tuple[int, int]) -> bytearray:
    header = bytearray(data[: frame.codes_at])
    header[frame.size_at : frame.size_at + 4] = b"".join(side.to_bytes(2, "big") for side in size)
    return header


def _joined(data: bytes, header: bytearray, starts: _Places, stops: _Places) -> bytes:
    """Header and pieces [rows, pieces of a row], the restart markers between them numbered anew."""
    stretches = zip(starts[:, 0].tolist(), stops[:, -1].tolist(), strict=True)
    joined = header + _RESTART.join([data[start:stop] for start, stop in stretches]) + _END
    behind = len(header) + np.cumsum((stops - starts).ravel() + len(_RESTART))[:-1]
    np.frombuffer(joined, np.uint8)[behind - 1] = _RESTART[1] + (np.arange(len(behind)) & 7)
    return bytes(joined)


def _pieces(data: bytes, codes_at: int, count: int) -> tuple[_Places, _Places] | None:
    """Where each piece of codes begins and ends; None unless there are `count` of them, numbered as they should be."""
    codes = np.frombuffer(data, np.uint8)[codes_at:]
    escapes = np.flatnonzero(codes[:-1] == 0xFF)
    following = codes[escapes + 1]
    is_restart = (following & 0xF8) == _RESTART[1]
    markers, numbers = escapes[is_restart] + codes_at, following[is_restart] & 7
    if len(markers) != count - 1 or not np.array_equal(numbers, np.arange(count - 1) & 7):
        return None
    starts = np.concatenate(([codes_at], markers + len(_RESTART)))
    return starts, np.concatenate((markers, [data.rfind(_END)]))
