"""corrupt(image, name, severity): the families of Hendrycks & Dietterich 2019 (ImageNet-C), for squares of any size.

A pure function of (image, name, severity, seed, sample): the same pixels on any rank and in any batch, with one version
of numpy. Strengths are ImageNet-C's at 224 pixels. Lengths shrink with the side of the square, and noise with its root,
which comes near what the same authors chose for 32 pixels (CIFAR-10-C). Frost is drawn, where they lay photographs over
the image, and each corruption is written anew: numbers compare networks measured here, not with published tables.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.pixels.corruptions import blur, digital, noise, weather
from data_pipeline.randomness import hash_words

Pixels = NDArray[np.uint8]
Image = NDArray[np.float32]
"""[S, S, C], 0 to 1."""

NUM_SEVERITIES = 5

FAMILIES: Mapping[str, Mapping[str, Callable[[Image, int, np.random.Generator], Image]]] = {
    "noise": {
        "gaussian_noise": noise.gaussian_noise,
        "shot_noise": noise.shot_noise,
        "impulse_noise": noise.impulse_noise,
    },
    "blur": {
        "defocus_blur": blur.defocus_blur,
        "glass_blur": blur.glass_blur,
        "motion_blur": blur.motion_blur,
        "zoom_blur": blur.zoom_blur,
    },
    "weather": {
        "snow": weather.snow,
        "frost": weather.frost,
        "fog": weather.fog,
        "brightness": weather.brightness,
    },
    "digital": {
        "contrast": digital.contrast,
        "elastic": digital.elastic,
        "pixelate": digital.pixelate,
        "jpeg": digital.jpeg,
    },
}
_BY_NAME = {name: function for family in FAMILIES.values() for name, function in family.items()}
NAMES = tuple(_BY_NAME)


def corrupt(image: Pixels, name: str, severity: int, *, seed: int, sample_id: int) -> Pixels:
    """An image [S, S, C] of one or three channels, corrupted; severities run from 1 to 5."""
    if not 1 <= severity <= NUM_SEVERITIES:
        raise ValueError(f"severity {severity} is not one of 1 to {NUM_SEVERITIES}")
    key = hash_words("corruption", seed, sample_id, zlib.crc32(name.encode()), severity)
    random = np.random.Generator(np.random.Philox(key=int(key[0])))
    values: Image = image.astype(np.float32) / np.float32(255)
    changed = _BY_NAME[name](values, severity - 1, random).reshape(image.shape)
    pixels: Pixels = np.rint(changed.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def chosen_corruptions(text: str) -> tuple[str, ...]:
    """The names that ``all`` or a list of families and names like ``noise,fog`` stands for, in the order of NAMES."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = ("all", *FAMILIES, *NAMES)
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        close = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"no corruption {' and no '.join(map(repr, unknown)) or repr(text)}; {hint}allowed are 'all', the families "
            f"{', '.join(FAMILIES)}, and {', '.join(NAMES)}"
        )
    wanted = {name for word in words for name in (NAMES if word == "all" else FAMILIES.get(word, (word,)))}
    return tuple(name for name in NAMES if name in wanted)
