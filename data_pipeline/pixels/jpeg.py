"""Part of a JPEG -> its pixels, at full, half, quarter or eighth size, decoding no more of the file than that takes.

Of its rows none below the part are decoded; with restart markers (`data_pipeline.pixels.excerpt`) none above, nor what
lies to either side.

libjpeg-turbo is called through TurboJPEG 3's functions, which report errors and never end the process. They come
with the `turbojpeg` wheel, or with the system; without them `decode_part` returns None: decode the whole image.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.pixels.excerpt import cut

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

SHRINKS = (8, 4, 2, 1)
"""Sizes a JPEG can be decoded at, as divisors of its own."""
MAX_SCANS = 100
"""A progressive JPEG of more scans is taken for an attack: each scan may cost as much as a whole image."""

_LIBRARY = "libturbojpeg.so.0"
_DECOMPRESS = 1  # tj3Init
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS, _SCAN_LIMIT, _LOSSLESS = (
    0,
    4,
    5,
    6,
    7,
    8,
    13,
    15,
)
_FORMATS = {1: 6, 3: 0, 4: 2}  # bytes per pixel -> TJPF_GRAY, TJPF_RGB, TJPF_RGBX
_CMYK = 3
_BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # by subsampling: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_CONTEXT = (
    2  # pixels beside a part, from which chroma is interpolated; a part's first and last columns lack them
)
_KEPT_BYTES = 64 << 20
_END = b"\xff\xd9"


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("left", "top", "width", "height")]


class _Fraction(ctypes.Structure):
    _fields_ = [("numerator", ctypes.c_int), ("denominator", ctypes.c_int)]


def decode_part(
    data: bytes, size: tuple[int, int], box: tuple[int, int, int, int], *, depth: int, shrink: int = 1
) -> Pixels | None:
    """The part `box` (left, top, right, bottom; in shrunken pixels) of a JPEG of `size` (height, width).

    `depth` 1 decodes to grey, 3 to RGB, 4 to RGB and a byte of padding. The pixels are those of a full decode, bit for
    bit, and valid until this thread's next call. None: decode the whole image, which knows more kinds of JPEG, or what
    is wrong with this one.
    """
    if not is_available() or data.rfind(_END, len(data) // 2) < 0:
        return None
    left, top, right, bottom = box
    full = (left * shrink, top * shrink, right * shrink, bottom * shrink)
    excerpt = cut(data, full, context=_CONTEXT * shrink)
    if excerpt is not None:
        x, y = (
            excerpt.left // shrink,
            excerpt.top // shrink,
        )  # blocks are 8 pixels, of which any shrink is a divisor
        data, size, box = excerpt.data, excerpt.size, (left - x, top - y, right - x, bottom - y)
    return _thread.decoder().decode(data, size, box, depth, shrink)


@cache
def is_available() -> bool:
    """Whether this machine has TurboJPEG 3; says once why JPEGs are read the slower way if not."""
    if _library() is not None:
        return True
    log.warning(
        "TurboJPEG 3 was not found, so that JPEGs are decoded whole, which is slower; "
        "install the turbojpeg package, or libjpeg-turbo 3 on this machine"
    )
    return False


class _Decoder:
    """A TurboJPEG handle and the buffer it decodes into; used by one thread."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = self._new_handle()
        self._buffer = np.empty(0, np.uint8)

    def decode(
        self, data: bytes, size: tuple[int, int], box: tuple[int, int, int, int], depth: int, shrink: int
    ) -> Pixels | None:
        library, handle = self._library, self._handle
        if library.tj3DecompressHeader(handle, data, len(data)):
            self._renew()
            return None
        if not self._fits(size):
            return None
        left, top, right, bottom = box
        block_width = max(1, _BLOCK_WIDTHS[library.tj3Get(handle, _SUBSAMPLING)] // shrink)
        start = max(0, left - _CONTEXT) // block_width * block_width
        stop = min(-(-size[1] // shrink), right + _CONTEXT)
        width, height = stop - start, bottom - top
        pixels = self._space(height * width * depth)
        if (
            library.tj3SetScalingFactor(handle, _Fraction(1, shrink))
            or library.tj3SetCroppingRegion(handle, _Region(start, top, width, height))
            or library.tj3Decompress8(
                handle, data, len(data), pixels.ctypes.data, width * depth, _FORMATS[depth]
            )
        ):
            self._renew()
            return None
        return pixels.reshape(height, width, depth)[:, left - start : right - start]

    def _new_handle(self) -> int:
        handle = self._library.tj3Init(_DECOMPRESS)
        if not handle:
            raise MemoryError("tj3Init: no memory for a JPEG decoder")
        self._library.tj3Set(handle, _STOP_ON_WARNING, 1)
        self._library.tj3Set(handle, _SCAN_LIMIT, MAX_SCANS)
        return int(handle)

    def _renew(self) -> None:
        # After some damaged headers a handle would refuse the next image, whatever it is.
        self._library.tj3Destroy(self._handle)
        self._handle = self._new_handle()

    def _fits(self, size: tuple[int, int]) -> bool:
        get, handle = self._library.tj3Get, self._handle
        return (
            (get(handle, _HEIGHT), get(handle, _WIDTH)) == size
            and get(handle, _PRECISION) == 8
            and not get(handle, _LOSSLESS)
            and 0 <= get(handle, _COLOURS) < _CMYK
            and 0 <= get(handle, _SUBSAMPLING) < len(_BLOCK_WIDTHS)
        )

    def _space(self, num_bytes: int) -> Pixels:
        if num_bytes > _KEPT_BYTES:
            return np.empty(num_bytes, np.uint8)
        if num_bytes > len(self._buffer):
            self._buffer = np.empty(num_bytes * 5 // 4, np.uint8)
        return self._buffer[:num_bytes]


class _PerThread(threading.local):
    _decoder: _Decoder | None = None

    def decoder(self) -> _Decoder:
        if self._decoder is None:
            library = _library()
            if library is None:
                raise RuntimeError("TurboJPEG 3 was not found; ask is_available() first")
            self._decoder = _Decoder(library)
        return self._decoder


_thread = _PerThread()


@cache
def _library() -> ctypes.CDLL | None:
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(library, "tj3SetCroppingRegion"):  # 2.x has none
            return _declared(library)
    return None


def _candidates() -> Iterator[str]:
    package = importlib.util.find_spec("turbojpeg")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "turbojpeg.libs"
        yield from sorted(str(path) for path in folder.glob("libturbojpeg*.so*"))
    yield _LIBRARY


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    handle, number = ctypes.c_void_p, ctypes.c_int
    encoded, num_bytes = ctypes.c_char_p, ctypes.c_size_t
    library.tj3Init.restype = handle
    library.tj3Init.argtypes = [number]
    library.tj3Destroy.argtypes = [handle]
    library.tj3Destroy.restype = None
    library.tj3Set.argtypes = [handle, number, number]
    library.tj3Get.argtypes = [handle, number]
    library.tj3DecompressHeader.argtypes = [handle, encoded, num_bytes]
    library.tj3SetScalingFactor.argtypes = [handle, _Fraction]
    library.tj3SetCroppingRegion.argtypes = [handle, _Region]
    library.tj3Decompress8.argtypes = [handle, encoded, num_bytes, handle, number, number]
    return library
