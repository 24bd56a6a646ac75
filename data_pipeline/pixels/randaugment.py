"""RandAugment (Cubuk et al. 2020): which operations change an image, how far, and what each does to its pixels.

Operations, ranges and pixels are those of timm's ``rand-mM-nN-mstdS-inc1``; the numbers behind them are uniforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from configs.data import MAX_LAYERS, RandAugmentConfig
from data_pipeline.pixels.colour import COLOUR_CHANGES, Change, Step

Amount = Callable[[float, float], float]
"""(level from 0 to 1, sign -1 or 1) -> amount."""

_STRONGEST = 10.0  # the magnitude whose level is 1

# Columns of the uniforms of one layer: whether, which operation, two for a normal deviate, the sign.
_HAPPENS, _WHICH, _DEVIATE, _SIGN = 0, 1, slice(2, 4), 4
_LAYER_DRAWS = 5
NUM_DRAWS = MAX_LAYERS * _LAYER_DRAWS


class RandAugment:
    """Draws steps as a config asks, for images of 1 or 3 channels."""

    def __init__(self, config: RandAugmentConfig, *, channels: int) -> None:
        self._config = config
        amounts = _AMOUNTS | _INCREASING if config.increasing else _AMOUNTS
        # Grey has no saturation to change.
        self._amounts = [(name, of) for name, of in amounts.items() if channels == 3 or name != "saturation"]

    def draw(self, u: NDArray[np.float64]) -> list[Step]:
        """The steps that `u` [NUM_DRAWS] chooses, in order; the same operation may come twice."""
        layers = u.reshape(MAX_LAYERS, _LAYER_DRAWS)[: self._config.layers]
        return [self._step(layer) for layer in layers if layer[_HAPPENS] < self._config.probability]

    def _step(self, u: NDArray[np.float64]) -> Step:
        name, amount = self._amounts[int(u[_WHICH] * len(self._amounts))]
        magnitude = self._config.magnitude + self._config.std * _normal(*u[_DEVIATE].tolist())
        level = min(max(magnitude, 0.0), _STRONGEST) / _STRONGEST
        return name, amount(level, -1.0 if u[_SIGN] < 0.5 else 1.0)


def changes(fill: tuple[int, ...]) -> dict[str, Change]:
    """What each operation does to an image; what comes in from outside has the colour `fill`."""
    return COLOUR_CHANGES | {
        "autocontrast": lambda image, _: ImageOps.autocontrast(image),
        "equalize": lambda image, _: ImageOps.equalize(image),
        "invert": lambda image, _: ImageOps.invert(image),
        "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
        "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
        "solarize_add": _solarize_add,
        "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": partial(_rotate, fill=fill),
        "shear_x": partial(_shear_x, fill=fill),
        "shear_y": partial(_shear_y, fill=fill),
        "translate_x": partial(_translate_x, fill=fill),
        "translate_y": partial(_translate_y, fill=fill),
    }


# Amounts of timm's operations; where `_INCREASING` has one too, that of `_AMOUNTS` weakens as the level grows.
# NOTE: posterize keeps one bit where timm keeps none, which is a black image, and an error since Pillow 13.
_AMOUNTS: dict[str, Amount] = {
    "autocontrast": lambda level, sign: 0.0,
    "equalize": lambda level, sign: 0.0,
    "invert": lambda level, sign: 0.0,
    "rotate": lambda level, sign: sign * 30.0 * level,
    "posterize": lambda level, sign: max(1, int(4 * level)),
    "solarize": lambda level, sign: int(256 * level),
    "solarize_add": lambda level, sign: int(110 * level),
    "saturation": lambda level, sign: 0.1 + 1.8 * level,
    "contrast": lambda level, sign: 0.1 + 1.8 * level,
    "brightness": lambda level, sign: 0.1 + 1.8 * level,
    "sharpness": lambda level, sign: 0.1 + 1.8 * level,
    "shear_x": lambda level, sign: sign * 0.3 * level,
    "shear_y": lambda level, sign: sign * 0.3 * level,
    "translate_x": lambda level, sign: sign * 0.45 * level,
    "translate_y": lambda level, sign: sign * 0.45 * level,
}
_INCREASING: dict[str, Amount] = {
    "posterize": lambda level, sign: max(1, 4 - int(4 * level)),
    "solarize": lambda level, sign: 256 - int(256 * level),
    **dict.fromkeys(
        ("saturation", "contrast", "brightness", "sharpness"),
        lambda level, sign: max(0.1, 1.0 + sign * 0.9 * level),
    ),
}


def _normal(first: float, second: float) -> float:
    # Box & Muller 1958; the logarithm's argument lies in (0, 1].
    return math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    table = [min(255, grey + int(add)) if grey < 128 else grey for grey in range(256)]
    return image.point(table * len(image.getbands()))


def _rotate(image: Image.Image, degrees: float, *, fill: tuple[int, ...]) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=_colour(fill))


def _shear_x(image: Image.Image, slope: float, *, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, slope, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, slope: float, *, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0, 0, slope, 1, 0), fill)


def _translate_x(image: Image.Image, fraction: float, *, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0, fraction * image.width, 0, 1, 0), fill)


def _translate_y(image: Image.Image, fraction: float, *, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, fraction * image.height), fill)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=_colour(fill),
    )


def _colour(fill: tuple[int, ...]) -> int | tuple[int, ...]:
    return fill[0] if len(fill) == 1 else fill
