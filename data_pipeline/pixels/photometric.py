"""Photometric: RandAugment and colour jitter of a finished square, between mirroring and erasing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.data import AugmentConfig
from data_pipeline.pixels import colour, randaugment
from data_pipeline.pixels.colour import Step, draw_jitter
from data_pipeline.pixels.randaugment import RandAugment, changes

# Columns of the uniforms: colour jitter's, then RandAugment's.
_JITTER = slice(0, colour.NUM_DRAWS)
_RANDAUGMENT = slice(colour.NUM_DRAWS, colour.NUM_DRAWS + randaugment.NUM_DRAWS)
NUM_DRAWS = _RANDAUGMENT.stop


class Photometric:
    """Changes squares as a config asks; `fill`, a value per channel, is the colour of what comes in from outside."""

    def __init__(self, augment: AugmentConfig, *, fill: tuple[int, ...]) -> None:
        self._jitter = augment.colour_jitter
        self._randaugment = (
            RandAugment(augment.randaugment, channels=len(fill)) if augment.randaugment else None
        )
        self._changes = changes(fill)

    def apply(self, square: NDArray[np.uint8], draws: NDArray[np.float64]) -> None:
        """Changes `square` [S, S, C] in place, as `draws` [NUM_DRAWS] chooses; without draws nothing is done."""
        steps = self.steps(draws)
        if not steps:
            return
        image = Image.fromarray(square[:, :, 0] if square.shape[2] == 1 else square)
        for name, amount in steps:
            image = self._changes[name](image, amount)
        square[...] = np.asarray(image).reshape(square.shape)

    def steps(self, draws: NDArray[np.float64]) -> list[Step]:
        """What `draws` chooses: names and amounts, RandAugment's before colour jitter's, as in timm."""
        if not len(draws):
            return []
        drawn = self._randaugment.draw(draws[_RANDAUGMENT]) if self._randaugment else []
        return drawn + (draw_jitter(self._jitter, draws[_JITTER]) if self._jitter else [])
