"""What the header of a JPEG says of how its blocks are coded (ITU-T T.81, annex B)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
NO_MARKER = 0
"""What `segments` gives for a place where there should be one."""

_START_OF_SCAN, _RESTART_INTERVAL = 0xDA, 0xDD
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_PADDING = 0xFF
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_BLOCK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegFrame:
    """A unit is the least part that is coded as a whole (MCU): the blocks of all components for a few pixels."""

    height: int
    width: int
    unit_height: int
    unit_width: int
    interval: int
    """Units from one restart marker to the next; 0 without any."""
    is_one_scan: bool
    """All components are in one sequential scan, with Huffman codes and 8 bits a sample."""
    size_at: int
    """Where height and width stand, two bytes each."""
    codes_at: int
    """Where the first scan's codes begin."""

    @property
    def units_per_row(self) -> int:
        """The last may be partly outside the image."""
        return -(-self.width // self.unit_width)

    @property
    def unit_rows(self) -> int:
        """Likewise."""
        return -(-self.height // self.unit_height)


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker and the place of each part of a header, as far as there are nine bytes from it on.

    The last has NO_MARKER where the header is damaged. Whoever has seen enough stops: codes look like anything.
    """
    position = 2
    while position + 9 <= len(data):
        marker = data[position + 1]
        if data[position] != _PADDING:
            yield NO_MARKER, position
            return
        if marker == _PADDING:
            position += 1
        elif marker in _STANDALONE:
            position += 2
        else:
            yield marker, position
            position += 2 + max(2, _number(data, position + 2))


def read_frame(data: bytes) -> JpegFrame | None:
    """None for what is no JPEG, or is damaged before its codes begin."""
    interval, start = 0, 0
    for marker, position in segments(data):
        if marker in STARTS_OF_FRAME:
            start = position
        elif marker == _RESTART_INTERVAL:
            interval = _number(data, position + 4)
        elif marker == _START_OF_SCAN:
            codes_at = position + 2 + _number(data, position + 2)
            if not start < codes_at < len(data):
                return None
            is_whole = bool(start) and data[position + 4] == data[start + 9]
            return _frame(data, start, interval, codes_at, is_whole=is_whole)
    return None


def _frame(data: bytes, start: int, interval: int, codes_at: int, *, is_whole: bool) -> JpegFrame | None:
    num_components = data[start + 9]
    if not start or start + 10 + 3 * num_components > codes_at:
        return None
    # Of a single component each block is a unit, whatever its factors.
    factors = [data[start + 11 + 3 * n] for n in range(num_components)] if num_components > 1 else [0x11]
    height, width = _number(data, start + 5), _number(data, start + 7)
    vertical, horizontal = max(f & 15 for f in factors), max(f >> 4 for f in factors)
    if not (height and width and vertical and horizontal):
        return None
    return JpegFrame(
        height=height,
        width=width,
        unit_height=_BLOCK * vertical,
        unit_width=_BLOCK * horizontal,
        interval=interval,
        is_one_scan=is_whole and data[start + 1] in _SEQUENTIAL and data[start + 4] == 8,
        size_at=start + 5,
        codes_at=codes_at,
    )


def _number(data: bytes, position: int) -> int:
    return data[position] << 8 | data[position + 1]
