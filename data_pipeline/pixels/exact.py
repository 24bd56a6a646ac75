"""The reference for pixels: PIL's full decode, crop and antialiased resize, what torchvision does as well."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from data_pipeline.pixels.decode import MAX_PIXELS, DecodeError, Header, Pixels

_FORMATS = ("JPEG", "PNG", "WEBP")  # PIL knows many more; only these are read
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)


def decode_crop_exactly(
    data: bytes, header: Header, box: tuple[int, int, int, int], out: Pixels, *, bicubic: bool = False
) -> None:
    """The part `box` (left, top, width, height) of an encoded image, resized by PIL to fill `out` [S, S, C]."""
    left, top, width, height = box
    # The header was judged by this bound, at which PIL would begin to warn.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.size != (header.width, header.height):
                raise DecodeError("damaged")
            pixels = image.convert("L" if out.shape[2] == 1 else "RGB")
    except _FAULTS as error:
        raise DecodeError("truncated" if "truncated" in str(error) else "damaged") from error
    part = pixels.crop((left, top, left + width, top + height))
    how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    square = part.resize((out.shape[1], out.shape[0]), how)
    np.copyto(out, np.asarray(square).reshape(out.shape))
