"""The reference for pixels: PIL's full decode, crop and antialiased resize, what torchvision does as well."""

from __future__ import annotations

import numpy as np
from PIL import Image

from data_pipeline.pixels.decode import DecodeError, Header, Pixels
from data_pipeline.pixels.pillow import FAULTS, in_eight_bits, open_image


def decode_crop_exactly(
    data: bytes, header: Header, box: tuple[int, int, int, int], out: Pixels, *, bicubic: bool = False
) -> None:
    """The part `box` (left, top, width, height) of an encoded image, resized by PIL to fill `out` [S, S, C]."""
    left, top, width, height = box
    try:
        with open_image(data, header) as image:
            pixels = in_eight_bits(image).convert("L" if out.shape[2] == 1 else "RGB")
    except FAULTS as error:
        raise DecodeError("truncated" if "truncated" in str(error) else "damaged") from error
    part = pixels.crop((left, top, left + width, top + height))
    how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    square = part.resize((out.shape[1], out.shape[0]), how)
    np.copyto(out, np.asarray(square).reshape(out.shape))
