"""Noise of sensors and of bad lines."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

_FULL_SIDE = 224
"""Side for which the strengths below hold."""
_STD = (0.08, 0.12, 0.18, 0.26, 0.38)
_PHOTONS = (60.0, 25.0, 12.0, 5.0, 3.0)  # that white is
_SHARE = (0.03, 0.06, 0.09, 0.17, 0.27)


def gaussian_noise(image: Image, level: int, random: np.random.Generator) -> Image:
    """What warm sensors add in the dark."""
    noise = random.standard_normal(image.shape, np.float32)
    noisy: Image = image + np.float32(_STD[level] * _weakening(image)) * noise
    return noisy


def shot_noise(image: Image, level: int, random: np.random.Generator) -> Image:
    """Light comes in whole photons, of which there are few."""
    photons = _PHOTONS[level] / _weakening(image) ** 2
    return (random.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: Image, level: int, random: np.random.Generator) -> Image:
    """Salt and pepper: single values are 0 or 1."""
    chance = random.random(image.shape, np.float32)
    share = _SHARE[level] * _weakening(image)
    noisy: Image = image.copy()
    noisy[chance < share / 2] = 0
    noisy[(chance >= share / 2) & (chance < share)] = 1
    return noisy


def _weakening(image: Image) -> float:
    """1 for full-sized images, less for small ones, of which each pixel is the mean of many."""
    return min(1.0, math.sqrt(min(image.shape[:2]) / _FULL_SIDE))
