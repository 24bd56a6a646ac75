"""Image files of users as pixels, prepared as a network's data section says, like those of shards in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.data import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.pixels.augment import as_evaluated
from data_pipeline.pixels.decode import DecodeError, crop_resize, decode


def read_image_file(path: Path, config: DataConfig) -> NDArray[np.uint8]:
    """[S, S, C]: cropped and resized as in evaluation; DataError for what is no JPEG, PNG or WebP."""
    try:
        pixels = decode(path.read_bytes(), channels=config.channels)
    except FileNotFoundError as error:
        raise DataError(f"image {str(path)!r}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"image {str(path)!r} is a folder: name the files in it") from error
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise DataError(
            f"image {str(path)!r} cannot be read: {error.reason}; JPEG, PNG and WebP are"
        ) from error
    square = np.empty((config.image_size, config.image_size, config.channels), np.uint8)
    sides = (np.array([side]) for side in pixels.shape[:2])
    (box,) = as_evaluated(config.eval_crop, config.image_size, *sides).boxes.tolist()
    crop_resize(pixels, tuple(box), square, bicubic=config.interpolation == "bicubic")
    return square


def read_image_files(paths: Sequence[Path], config: DataConfig) -> NDArray[np.uint8]:
    """[N, S, S, C]; every file that is no image is told at once."""
    images, mistakes = [], []
    for path in paths:
        try:
            images.append(read_image_file(path, config))
        except DataError as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise DataError("\n".join(mistakes))
    return np.stack(images)
