"""Pillow, where whole images are decoded by it: as the reference for pixels, and to encode them anew."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from data_pipeline.pixels.decode import JPEG, MAX_PIXELS, DecodeError, Header, refuse_many_scans

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
"""Those that are read and written, and Pillow's names for them; it knows many more."""
FAULTS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What its decoders raise on damaged files."""


def open_image(data: bytes, header: Header) -> Image.Image:
    """An image that is not decoded yet, as large as its header said to `read_header`; DecodeError or one of FAULTS."""
    if header.format == JPEG:
        refuse_many_scans(data)
    # The header was judged by this bound, at which Pillow would begin to warn; of several it reads the last.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    image = Image.open(io.BytesIO(data), formats=list(FORMATS.values()))
    if image.size != (header.width, header.height):
        raise DecodeError("damaged")
    return image


def in_eight_bits(image: Image.Image) -> Image.Image:
    """The upper eight of 16 bits of grey, as other decoders have them: Pillow would clip at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
