"""What screens, prints and files do to an image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.pixels.corruptions.blur import displaced

Image = NDArray[np.float32]

_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_BEND = (0.02, 0.03, 0.04, 0.055, 0.07)  # largest shift, as a share of the side
_BEND_WIDTH = 0.06  # over which neighbours are shifted alike
_PIXELS = (0.6, 0.5, 0.4, 0.3, 0.25)  # of the side
_QUALITY = (25, 18, 15, 10, 7)


def contrast(image: Image, level: int, random: np.random.Generator) -> Image:
    """Everything comes near the mean colour."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    pale: Image = mean + np.float32(_CONTRAST[level]) * (image - mean)
    return pale


def elastic(image: Image, level: int, random: np.random.Generator) -> Image:
    """The image is drawn on rubber (Simard et al. 2003)."""
    height, width = image.shape[:2]
    side = min(height, width)
    moves = [
        cv2.GaussianBlur(random.uniform(-1, 1, (height, width)), (0, 0), max(0.5, _BEND_WIDTH * side))
        for _ in range(2)
    ]
    largest = max(float(np.hypot(moves[0], moves[1]).max()), 1e-6)
    right, down = (np.asarray(move) * (_BEND[level] * side / largest) for move in moves)
    return displaced(image, right, down)


def pixelate(image: Image, level: int, random: np.random.Generator) -> Image:
    """Fewer and larger pixels."""
    height, width = image.shape[:2]
    few = max(1, round(width * _PIXELS[level])), max(1, round(height * _PIXELS[level]))
    small = cv2.resize(image, few, interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(large, np.float32).reshape(image.shape)


def jpeg(image: Image, level: int, random: np.random.Generator) -> Image:
    """Saved as JPEG of low quality."""
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    is_grey = image.shape[2] == 1
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY[level]]
    # OpenCV takes colours the other way round.
    encoded = cv2.imencode(".jpg", pixels if is_grey else pixels[..., ::-1], options)
    decoded = cv2.imdecode(encoded[1], cv2.IMREAD_GRAYSCALE if is_grey else cv2.IMREAD_COLOR_RGB)
    stored: Image = np.asarray(decoded, np.float32).reshape(image.shape) / np.float32(255)
    return stored
