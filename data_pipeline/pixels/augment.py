"""How each training image is varied: crop, shift, mirror, colours, erase; drawn per batch, keyed by the sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.data import AugmentConfig
from data_pipeline.pixels import photometric
from data_pipeline.randomness import hash_words, to_unit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_TRIES = 10  # boxes drawn before falling back, as in torchvision
_ERASE_AREA, _ERASE_RATIO = (0.02, 0.33), (0.3, 1 / 0.3)  # Zhong et al. 2017

# Columns of the uniforms: every use has its own, so that switching one augmentation on leaves the others alone.
_FLIP, _PLACE, _ERASE, _ERASE_PLACE = 0, slice(1, 3), 3, slice(4, 6)
_CROP_AREA, _CROP_RATIO = slice(6, 16), slice(16, 26)
_BOX_AREA, _BOX_RATIO = slice(26, 36), slice(36, 46)
_PHOTOMETRIC = slice(46, 46 + photometric.NUM_DRAWS)
NUM_DRAWS = _PHOTOMETRIC.stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Variations:
    """What is done to each image of a batch, in this order."""

    boxes: Ints
    """[n, 4] left, top, width, height in the source image; this part is resized to the square output."""
    shifts: Ints
    """[n, 2] pixels the output moves right and down; what comes in is black."""
    flips: NDArray[np.bool_]
    """[n] whether the output is mirrored left to right."""
    photometric: Floats
    """[n, k] uniforms from which Photometric draws what is done to the output; k = 0: nothing."""
    erasures: Ints
    """[n, 4] left, top, width, height of a part of the output that becomes the mean colour; empty: none."""


def uniforms(
    seed: int, epoch: int | Ints, sample_ids: Ints, draws: int = NUM_DRAWS, view: int | Ints = 0
) -> Floats:
    """[n, draws] numbers in [0, 1), a function of (seed, epoch, sample, view, column) and of nothing else.

    `view` tells apart several variations of a sample within an epoch. It and `epoch` are one number, or one for each
    sample.
    """
    columns = np.arange(draws)[None, :] + (np.reshape(view, (-1, 1)).astype(np.int64) << 32)
    epochs = np.reshape(epoch, (-1, 1)).astype(np.int64)
    return to_unit(hash_words("augment", seed, epochs, sample_ids[:, None], columns))


def varied_as(config: AugmentConfig, passes: Ints) -> Ints:
    """The passes whose variations these have: their own, unless ``augment.passes`` lets variations come again."""
    return passes if config.passes is None else passes % config.passes


def whole_image(heights: Ints, widths: Ints) -> Variations:
    """No variation: the whole image, resized."""
    n, zeros = len(heights), np.zeros_like(heights)
    return Variations(
        boxes=np.stack([zeros, zeros, widths, heights], axis=1),
        shifts=np.zeros((n, 2), np.int64),
        flips=np.zeros(n, bool),
        photometric=np.zeros((n, 0)),
        erasures=np.zeros((n, 4), np.int64),
    )


def as_evaluated(part: float | None, size: int, heights: Ints, widths: Ints) -> Variations:
    """What evaluation does to images of these heights and widths; `part` is ``data.eval_crop``."""
    return whole_image(heights, widths) if part is None else central_squares(part, size, heights, widths)


def central_squares(part: float, size: int, heights: Ints, widths: Ints) -> Variations:
    """The central square of `part` of the shorter side, as timm crops `size` x `size` pixels of an image it resized."""
    whole = whole_image(heights, widths)
    shorter = np.minimum(heights, widths)
    sides = np.rint(shorter * size / np.floor(size / part)).astype(np.int64).clip(1, shorter)
    lefts, tops = (widths - sides) // 2, (heights - sides) // 2
    return replace(whole, boxes=np.stack([lefts, tops, sides, sides], axis=1))


def draw_variations(config: AugmentConfig, size: int, heights: Ints, widths: Ints, u: Floats) -> Variations:
    """What is done, by `uniforms` u, to images of these heights and widths on their way to `size` x `size`."""
    plain = whole_image(heights, widths)
    cropped = config.crop == "random_resized"
    return Variations(
        boxes=crop_boxes(config, heights, widths, u) if cropped else plain.boxes,
        shifts=_integers(u[:, _PLACE], -config.pad, config.pad) if config.crop == "pad" else plain.shifts,
        flips=u[:, _FLIP] < 0.5 if config.flip else plain.flips,
        photometric=u[:, _PHOTOMETRIC] if config.randaugment or config.colour_jitter else plain.photometric,
        erasures=_erasures(config.erase, size, u) if config.erase else plain.erasures,
    )


def crop_boxes(config: AugmentConfig, heights: Ints, widths: Ints, u: Floats) -> Ints:
    """[n, 4] left, top, width, height of random resized crops, by torchvision's rules."""
    box_widths, box_heights, fits = _first_fitting(
        areas=(heights * widths)[:, None] * _between(u[:, _CROP_AREA], *config.scale),
        ratios=_between_logs(u[:, _CROP_RATIO], *config.ratio),
        heights=heights,
        widths=widths,
    )
    narrowest, widest = config.ratio
    # Where no try fits: the largest central box of an allowed ratio.
    box_widths = np.where(fits, box_widths, np.minimum(widths, np.rint(heights * widest))).astype(np.int64)
    box_heights = np.where(fits, box_heights, np.minimum(heights, np.rint(widths / narrowest))).astype(
        np.int64
    )
    lefts, tops = _place(u[:, _PLACE], widths - box_widths, heights - box_heights, centred=~fits)
    return np.stack([lefts, tops, box_widths, box_heights], axis=1)


def _erasures(probability: float, size: int, u: Floats) -> Ints:
    sides = np.full(len(u), size, np.int64)
    widths, heights, fits = _first_fitting(
        areas=size * size * _between(u[:, _BOX_AREA], *_ERASE_AREA),
        ratios=_between_logs(u[:, _BOX_RATIO], *_ERASE_RATIO),
        heights=sides,
        widths=sides,
    )
    lefts, tops = _place(u[:, _ERASE_PLACE], size - widths, size - heights, centred=~fits)
    happens = fits & (u[:, _ERASE] < probability)
    return np.stack([lefts, tops, widths, heights], axis=1) * happens[:, None]


def _first_fitting(
    *, areas: Floats, ratios: Floats, heights: Ints, widths: Ints
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    tried_widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    tried_heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (tried_widths > 0) & (tried_widths <= widths[:, None])
    fits &= (tried_heights > 0) & (tried_heights <= heights[:, None])
    rows, first = np.arange(len(areas)), fits.argmax(axis=1)
    return tried_widths[rows, first], tried_heights[rows, first], fits[rows, first]


def _place(u: Floats, free_x: Ints, free_y: Ints, *, centred: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    free = np.stack([free_x, free_y], axis=1)
    places = np.where(centred[:, None], free // 2, np.floor(u * (free + 1)).astype(np.int64))
    return places[:, 0], places[:, 1]


def _integers(u: Floats, low: int, high: int) -> Ints:
    return low + np.floor(u * (high - low + 1)).astype(np.int64)


def _between(u: Floats, low: float, high: float) -> Floats:
    return low + u * (high - low)


def _between_logs(u: Floats, low: float, high: float) -> Floats:
    return np.asarray(np.exp(_between(u, np.log(low), np.log(high))), dtype=np.float64)
