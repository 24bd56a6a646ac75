"""A box of an encoded image -> a square of pixels, by the cheapest way that keeps them right.

JPEG       only the rows and columns of the box, at 1/2, 1/4 or 1/8 size where the square stays smaller still
PNG, WebP  the whole image, then the box
"""

from __future__ import annotations

from data_pipeline.pixels.decode import JPEG, Header, Pixels, crop_resize, decode
from data_pipeline.pixels.jpeg import SHRINKS, decode_part
from data_pipeline.pixels.resize import needs_no_blur, resize_box_into, resize_into

_SLACK = 1.5  # a smaller decode has to be so much larger than the square: nearer to it, the resize costs up to 6 dB


def decode_crop(
    data: bytes, header: Header, box: tuple[int, int, int, int], out: Pixels, *, bicubic: bool = False
) -> None:
    """The part `box` (left, top, width, height) of an encoded image, resized to fill `out` [S, S, C].

    For `bicubic` a JPEG is decoded at its full size, since what a smaller decode leaves is not sharp any more.
    """
    if header.format != JPEG or not _decode_jpeg_crop(data, header, box, out, bicubic=bicubic):
        crop_resize(decode(data, channels=out.shape[2], header=header), box, out, bicubic=bicubic)


def _decode_jpeg_crop(
    data: bytes, header: Header, box: tuple[int, int, int, int], out: Pixels, *, bicubic: bool
) -> bool:
    left, top, width, height = box
    side, channels = len(out), out.shape[2]
    fits = (k for k in SHRINKS if k == 1 or (not bicubic and min(width, height) >= _SLACK * k * side))
    shrink = next(fits)
    depth = 4 if channels == 3 and not bicubic and needs_no_blur(width, height, side) else channels
    outer = (left // shrink, top // shrink, -(-(left + width) // shrink), -(-(top + height) // shrink))
    size = (header.height, header.width)
    part = decode_part(data, size, outer, depth=depth, shrink=shrink)
    if part is None:
        return False
    if part.shape[1] * shrink == width and part.shape[0] * shrink == height:
        resize_into(part, out, bicubic=bicubic)
    else:
        inner = (left / shrink - outer[0], top / shrink - outer[1], width / shrink, height / shrink)
        resize_box_into(part, inner, out)
    return True
