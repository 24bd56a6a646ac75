"""Blur of lenses, of frosted glass and of movement."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

# In pixels of an image of 224.
_FULL_SIDE = 224
_RADIUS = (3.0, 4.0, 6.0, 8.0, 10.0)
_SHIFT = (3.0, 4.0, 5.0, 7.0, 9.0)
_LENGTH = (8.0, 12.0, 18.0, 26.0, 34.0)

_ZOOM = (1.11, 1.16, 1.21, 1.26, 1.31)
_NUM_ZOOMS = 8
_EDGE = 0.3  # pixels over which a disk's edge fades, so that one of a fraction of a pixel blurs too
_POINTS_PER_PIXEL = 8


def defocus_blur(image: Image, level: int, random: np.random.Generator) -> Image:
    """A point becomes a disk."""
    radius = _RADIUS[level] * min(image.shape[:2]) / _FULL_SIDE
    reach = math.ceil(radius + 4 * _EDGE)
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(steps[:, None], steps[None, :])
    disk = 1 / (1 + np.exp((distance - radius) / _EDGE))
    return _filtered(image, disk)


def glass_blur(image: Image, level: int, random: np.random.Generator) -> Image:
    """Each pixel comes from somewhere near."""
    height, width = image.shape[:2]
    shift = _SHIFT[level] * min(height, width) / _FULL_SIDE
    moves = random.uniform(-shift, shift, (2, height, width))
    return displaced(image, moves[0], moves[1])


def motion_blur(image: Image, level: int, random: np.random.Generator) -> Image:
    """The camera moved, in any direction."""
    length = _LENGTH[level] * min(image.shape[:2]) / _FULL_SIDE
    return _filtered(image, line_kernel(length, random.uniform(0, math.pi)))


def zoom_blur(image: Image, level: int, random: np.random.Generator) -> Image:
    """The camera came nearer."""
    height, width = image.shape[:2]
    total = np.zeros_like(image)
    for factor in np.linspace(1, _ZOOM[level], _NUM_ZOOMS):
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, float(factor))
        zoomed = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        total += zoomed.reshape(image.shape)
    mean: Image = total / np.float32(_NUM_ZOOMS)
    return mean


def displaced(image: Image, right: NDArray[np.float64], down: NDArray[np.float64]) -> Image:
    """Each pixel is the one so far right and below, between pixels bilinear; the image goes on mirrored."""
    rows, columns = np.indices(image.shape[:2], np.float32)
    moved = cv2.remap(
        image,
        (columns + right).astype(np.float32),
        (rows + down).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(moved, np.float32).reshape(image.shape)


def line_kernel(length: float, angle: float) -> NDArray[np.float64]:
    """A line through the middle, as weights that sum to 1."""
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for place in np.linspace(-length / 2, length / 2, 1 + math.ceil(length * _POINTS_PER_PIXEL)):
        x, y = reach + place * math.cos(angle), reach + place * math.sin(angle)
        left, top = math.floor(x), math.floor(y)
        for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            kernel[row, column] += (1 - abs(x - column)) * (1 - abs(y - row))
    weights: NDArray[np.float64] = kernel / kernel.sum()
    return weights


def _filtered(image: Image, kernel: NDArray[np.float64]) -> Image:
    blurred = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, np.float32).reshape(image.shape)
