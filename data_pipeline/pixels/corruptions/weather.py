"""Snow, frost, fog and glaring light."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.pixels.corruptions.blur import line_kernel

Image = NDArray[np.float32]

_FULL_SIDE = 224
_FLAKES = (0.03, 0.05, 0.08, 0.11, 0.15)  # share of the area
_FALL = (8.0, 10.0, 12.0, 14.0, 18.0)  # pixels of 224 that a flake falls while the shutter is open
_WHITENING = (0.1, 0.2, 0.25, 0.3, 0.35)
_ICE = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # weights of image and frost
_FOG = ((1.5, 0.50), (2.0, 0.50), (2.5, 0.59), (2.5, 0.63), (3.0, 0.71))  # strength; how slowly detail fades
_GLARE = (0.1, 0.2, 0.3, 0.4, 0.5)


def snow(image: Image, level: int, random: np.random.Generator) -> Image:
    """Flakes fall across an image that grows pale."""
    height, width = image.shape[:2]
    scale = min(height, width) / _FULL_SIDE
    cell = max(1.0, 3 * scale)
    grid = random.random((math.ceil(height / cell), math.ceil(width / cell)), np.float32)
    flakes = cv2.resize((grid < _FLAKES[level]).astype(np.float32), (width, height))
    angle = math.radians(random.uniform(45, 135))
    streaks = cv2.filter2D(flakes, -1, line_kernel(_FALL[level] * scale, angle))
    grey = image.mean(axis=2, keepdims=True)
    pale = image + np.float32(_WHITENING[level]) * np.maximum(0, 0.5 + 0.5 * grey - image)
    snowy: Image = pale + np.asarray(streaks, np.float32)[..., None]
    return snowy


def frost(image: Image, level: int, random: np.random.Generator) -> Image:
    """Crystals of ice on the pane: the ridges of a rough surface."""
    keep, ice = _ICE[level]
    surface = _rough(image.shape[0], image.shape[1], roughness=0.7, random=random)
    ridges = (1 - np.abs(2 * surface - 1)) ** 3
    frosted: Image = np.float32(keep) * image + np.float32(ice) * ridges[..., None]
    return frosted


def fog(image: Image, level: int, random: np.random.Generator) -> Image:
    """Light that clouds scatter lies over everything, and contrast is lost."""
    strength, roughness = _FOG[level]
    clouds = _rough(image.shape[0], image.shape[1], roughness=roughness, random=random)
    brightest = max(float(image.max()), 1 / 255)
    veiled = image + np.float32(strength) * clouds[..., None]
    foggy: Image = veiled * np.float32(brightest / (brightest + strength))
    return foggy


def brightness(image: Image, level: int, random: np.random.Generator) -> Image:
    """The value of each pixel is raised, its hue and saturation kept."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32(_GLARE[level]), 1)
    glaring: Image = np.where(value > 0, image * (raised / np.maximum(value, 1e-6)), raised)
    return glaring.astype(np.float32)


def _rough(height: int, width: int, *, roughness: float, random: np.random.Generator) -> Image:
    """A random surface, 0 to 1: grids from coarse to fine, each `roughness` times as strong as the one before."""
    total = np.zeros((height, width), np.float32)
    strength, cells = 1.0, 2
    while cells <= 2 * max(height, width):
        grid = random.random((cells, cells), np.float32)
        total += np.float32(strength) * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        strength, cells = strength * roughness, cells * 2
    low, high = total.min(), total.max()
    surface: Image = (total - low) / max(high - low, np.float32(1e-6))
    return surface
