"""Changes of an image's colours, and colour jitter: which of them, how much and in which order."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from configs.data import ColourJitterConfig

Change = Callable[[Image.Image, float], Image.Image]
Step = tuple[str, float]
"""The name of a change, and its amount."""

# Columns of the uniforms of colour jitter: whether, how much of each of the four, in which order.
_HAPPENS, _AMOUNTS, _ORDER = 0, slice(1, 5), slice(5, 9)
NUM_DRAWS = 9


def draw_jitter(config: ColourJitterConfig, u: NDArray[np.float64]) -> list[Step]:
    """What `u` [NUM_DRAWS] chooses by torchvision's rules: each change at most once, in random order."""
    if u[_HAPPENS] >= config.probability:
        return []
    names = ("brightness", "contrast", "saturation", "hue")
    ranges = [_factors(config.brightness), _factors(config.contrast), _factors(config.saturation)]
    ranges.append((-config.hue, config.hue))
    amounts = [low + x * (high - low) for x, (low, high) in zip(u[_AMOUNTS].tolist(), ranges, strict=True)]
    return [(names[i], amounts[i]) for i in np.argsort(u[_ORDER]).tolist() if ranges[i][0] < ranges[i][1]]


def change_brightness(image: Image.Image, factor: float) -> Image.Image:
    """0 is black, 1 changes nothing."""
    return ImageEnhance.Brightness(image).enhance(factor)


def change_contrast(image: Image.Image, factor: float) -> Image.Image:
    """0 is the image's mean grey, 1 changes nothing."""
    return ImageEnhance.Contrast(image).enhance(factor)


def change_saturation(image: Image.Image, factor: float) -> Image.Image:
    """0 is grey, 1 changes nothing."""
    return ImageEnhance.Color(image).enhance(factor)


def turn_hue(image: Image.Image, turns: float) -> Image.Image:
    """Moves every hue around the circle of colours by `turns`; red becomes green at 1/3."""
    # A tenth of the time of PIL's conversion to HSV, and nearer to the hue computed in floating point.
    pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2HSV_FULL)
    pixels[:, :, 0] += np.uint8(round(turns * 256) % 256)
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB_FULL))


COLOUR_CHANGES: dict[str, Change] = {
    "brightness": change_brightness,
    "contrast": change_contrast,
    "saturation": change_saturation,
    "hue": turn_hue,
}


def _factors(width: float) -> tuple[float, float]:
    return max(0.0, 1.0 - width), 1.0 + width
