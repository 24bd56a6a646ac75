"""JPEG, PNG and WebP bytes -> uint8 pixels of the whole image; the header is judged first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipeline.pixels.jpeg import MAX_SCANS
from data_pipeline.pixels.jpeg_frame import NO_MARKER, STARTS_OF_FRAME, segments
from data_pipeline.pixels.resize import resize_into
from data_pipeline.scan import SUFFIXES

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Larger images are refused before decoding (the bound PIL calls a decompression bomb)."""

JPEG, PNG, WEBP = SUFFIXES["jpg"], SUFFIXES["png"], SUFFIXES["webp"]
"""Numbers of the formats, as in the index."""

_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_SCAN = b"\xff\xda"
_CORRUPT, _HARMLESS = "Corrupt JPEG data", "extraneous bytes"
"""How libjpeg's warnings on codes begin, and the one that costs no pixel."""


class DecodeError(Exception):
    """An image that cannot be used; `reason` is one of a few fixed texts, fit for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image say."""

    format: int
    """As in the index: 0 JPEG, 1 PNG, 2 WebP; by content, whatever the suffix was."""
    height: int
    width: int


def read_header(data: bytes) -> Header:
    """Format and size of an encoded image; DecodeError for what is none, is empty, or exceeds MAX_PIXELS."""
    if not data:
        raise DecodeError("empty")
    if data.startswith(b"\xff\xd8\xff"):
        header = Header(JPEG, *_jpeg_size(data))
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        header = Header(PNG, _big(data, 20, 24), _big(data, 16, 20))
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        header = Header(WEBP, *_webp_size(data))
    else:
        raise DecodeError("not an image")
    if header.height * header.width > MAX_PIXELS:
        raise DecodeError("too many pixels")
    if not header.height * header.width:
        raise DecodeError("damaged")
    return header


def decode(data: bytes, *, channels: int, header: Header | None = None) -> Pixels:
    """Encoded image -> [H, W, channels], grey or RGB; EXIF rotation is ignored, transparency dropped."""
    header = header or read_header(data)
    if header.format == JPEG:
        pixels = _decode_jpeg(data, channels)
    elif header.format == PNG:
        pixels = _decode_any(data, channels, complete=_png_is_complete(data))
    else:
        pixels = _decode_any(data, channels, complete=int.from_bytes(data[4:8], "little") + 8 <= len(data))
    if pixels.shape[:2] != (header.height, header.width):
        raise DecodeError("damaged")
    return pixels.reshape(header.height, header.width, channels)


def crop_resize(image: Pixels, box: tuple[int, int, int, int], out: Pixels, *, bicubic: bool = False) -> None:
    """The part `box` (left, top, width, height) of an image [H, W, C], resized to fill `out` [S, S, C]."""
    left, top, width, height = box
    resize_into(image[top : top + height, left : left + width], out, bicubic=bicubic)


def refuse_many_scans(data: bytes) -> None:
    """DecodeError for a JPEG with more scans than MAX_SCANS, each of which costs time for the whole image."""
    if data.count(_SCAN) > MAX_SCANS:
        raise DecodeError("damaged")


def limit_threads() -> None:
    """Keeps the codecs of this process on the calling thread: loaders work by processes."""
    cv2.setNumThreads(0)


def _decode_jpeg(data: bytes, channels: int) -> Pixels:
    refuse_many_scans(data)
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", strict=True)
    except ValueError as error:
        said = str(error)
        if "Premature end" in said:
            raise DecodeError("truncated") from error
        if _CORRUPT in said and _HARMLESS not in said:  # there are pixels from here on, of nothing
            raise DecodeError("damaged") from error
        # CMYK, unusual subsampling, harmless bytes between markers: OpenCV takes them.
        return _decode_any(data, channels, complete=b"\xff\xd9" in data)
    return decoded


def _png_is_complete(data: bytes) -> bool:
    # OpenCV allocates a chunk's announced length before it reads: walk the chunks first.
    position = 8
    while position + 12 <= len(data):
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + _big(data, position, position + 4)
    return False


def _decode_any(data: bytes, channels: int, *, complete: bool) -> Pixels:
    if not complete:
        raise DecodeError("truncated")
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DecodeError("damaged") from error
    if pixels is None:
        raise DecodeError("damaged")
    decoded: Pixels = pixels
    return decoded


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, position in segments(data):
        if marker == NO_MARKER:
            raise DecodeError("damaged")
        if marker in STARTS_OF_FRAME:
            height, width = _big(data, position + 5, position + 7), _big(data, position + 7, position + 9)
            if marker not in _ARITHMETIC:
                _check_length(data, height, width)
            return height, width
    raise DecodeError("truncated")


def _check_length(data: bytes, height: int, width: int) -> None:
    # Huffman coding spends a bit or more on each block of 8 x 8: a few bytes that claim a large image are a bomb.
    num_blocks = -(-height // 8) * -(-width // 8)
    if height * width <= MAX_PIXELS and 8 * len(data) < num_blocks:
        raise DecodeError("truncated")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if len(data) < 30:
        raise DecodeError("truncated")
    if kind == b"VP8X":
        return 1 + _little(data, 27, 30), 1 + _little(data, 24, 27)
    if kind == b"VP8L":
        bits = _little(data, 21, 25)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        return _little(data, 28, 30) & 0x3FFF, _little(data, 26, 28) & 0x3FFF
    raise DecodeError("damaged")


def _big(data: bytes, start: int, stop: int) -> int:
    if len(data) < stop:
        raise DecodeError("truncated")
    return int.from_bytes(data[start:stop], "big")


def _little(data: bytes, start: int, stop: int) -> int:
    return int.from_bytes(data[start:stop], "little")
