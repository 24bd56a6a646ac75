"""Image files of users as pixels: squeezed into the square that a network takes, as in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.pixels.decode import DecodeError, crop_resize, decode


def read_image_file(path: Path, out: NDArray[np.uint8]) -> None:
    """Fills `out` [S, S, C]; DataError for what is no JPEG, PNG or WebP."""
    try:
        pixels = decode(path.read_bytes(), channels=out.shape[2])
    except FileNotFoundError as error:
        raise DataError(f"image {str(path)!r}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"image {str(path)!r} is a folder: name the files in it") from error
    except DecodeError as error:
        raise DataError(
            f"image {str(path)!r} cannot be read: {error.reason}; JPEG, PNG and WebP are"
        ) from error
    crop_resize(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), out)


def read_image_files(paths: Sequence[Path], *, size: int, channels: int) -> NDArray[np.uint8]:
    """[N, S, S, C]; every file that is no image is told at once."""
    images = np.empty((len(paths), size, size, channels), np.uint8)
    mistakes = []
    for slot, path in enumerate(paths):
        try:
            read_image_file(path, images[slot])
        except DataError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise DataError("\n".join(mistakes))
    return images
