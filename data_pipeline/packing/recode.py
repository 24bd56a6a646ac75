"""Recoding: images decoded, turned upright, made smaller and encoded anew; those that fit keep their bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps, features

from data_pipeline.packing.record import BrokenImage, suffix_of
from data_pipeline.pixels.decode import DecodeError, read_header
from data_pipeline.pixels.pillow import FAULTS, FORMATS, in_eight_bits, open_image

_ORIENTATION = 0x0112
_UPRIGHT = (0, 1)
_QUARTER_TURNED = (5, 6, 7, 8)
_DCT_SLACK = 2
"""A JPEG is decoded at a fraction of its size only down to so many times the wanted one: the resize sees detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoding:
    """How images are to become."""

    max_side: int | None = None
    """Longest side in pixels; smaller images are never enlarged."""
    format: str | None = None
    """One of FORMATS; None leaves each in its own."""
    quality: int = 90
    """Of JPEG and WebP."""

    def fingerprint(self) -> str:
        """All that decides about the bytes: the choices, and the versions of the libraries that encode."""
        versions = [features.version(name) for name in ("pil", "libjpeg_turbo", "webp", "zlib")]
        return f"{self.max_side} {self.format} {self.quality} {versions}"


def recode(content: bytes, wanted: Recoding) -> bytes:
    """The image as wanted, the same bytes on each call; BrokenImage when it does not decode.

    One that has the wanted format and size, and stands upright, keeps its bytes. Others are turned upright by their
    EXIF orientation and lose all metadata; JPEG has no transparency, so there it is dropped, not blended.
    """
    suffix = wanted.format or suffix_of(content)
    try:
        with open_image(content, read_header(content)) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            size = _fitting(image.size, wanted.max_side)
            if orientation in _UPRIGHT and size == image.size and suffix == suffix_of(content):
                image.load()
                return content
            image.draft(None, (_DCT_SLACK * size[0], _DCT_SLACK * size[1]))
            upright = _in_plain_mode(ImageOps.exif_transpose(image))
            size = size[::-1] if orientation in _QUARTER_TURNED else size
            fitted = upright if upright.size == size else upright.resize(size, Image.Resampling.LANCZOS)
            return _encode(fitted, str(suffix), wanted.quality)
    except DecodeError as fault:
        raise BrokenImage(fault.reason) from fault
    except FAULTS as fault:
        raise BrokenImage(str(fault) or type(fault).__name__) from fault


def _fitting(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Width and height of an image whose longest side is at most `max_side`, in its proportions."""
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longest)) for side in size)
    return width, height


def _in_plain_mode(image: Image.Image) -> Image.Image:
    """Grey or RGB, with alpha where there is transparency: modes that can be resized and written."""
    image = in_eight_bits(image)
    if image.mode in ("L", "RGB", "RGBA", "LA"):
        transparent = "transparency" in image.info
        return image.convert("RGBA") if transparent else image
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _encode(image: Image.Image, suffix: str, quality: int) -> bytes:
    if suffix == "jpg" and image.mode in ("RGBA", "LA"):
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    if suffix == "webp" and image.mode == "LA":
        image = image.convert("RGBA")
    options: dict[str, object] = {"quality": quality}
    if suffix == "png":
        options = {"compress_level": 6}
    image.info = {}  # PIL would write profiles, comments and tags found here
    file = io.BytesIO()
    image.save(file, FORMATS[suffix], **options)
    return file.getvalue()
