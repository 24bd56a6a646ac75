"""Pixels of a box -> a square: bilinear where it grows, bilinear after a blur that fits the factor where it shrinks.

The aim is PIL's antialiased bilinear filter at a third of its cost; benchmarks/fidelity.py measures the distance.
Bicubic is torch's antialiased filter, which is PIL's.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]

_SHARP_UP_TO = 1.3  # plain bilinear sampling: the blur would cost more time than it adds fidelity
_THREE_TAPS_UP_TO = 2.2  # beyond, three taps are too few for the blur


def needs_no_blur(width: float, height: float, side: int) -> bool:
    """Whether a box of this size becomes a square of `side` without a blur; then 4 bytes per pixel are the fastest."""
    return max(width, height) <= _SHARP_UP_TO * side


def resize_into(part: Pixels, out: Pixels, *, bicubic: bool = False) -> None:
    """All of `part` [H, W, C or C + 1] -> `out` [S, S, C]; a byte of padding after each pixel is dropped."""
    side, (height, width) = len(out), part.shape[:2]
    if part.shape[2] != out.shape[2]:
        padded = part if height == width == side else _resized(part, side)
        cv2.cvtColor(padded, cv2.COLOR_RGBA2RGB, dst=out)
    elif height == width == side:
        np.copyto(out, part)
    elif bicubic or max(width, height) > _THREE_TAPS_UP_TO * side:
        _resize_antialiased(part, out, "bicubic" if bicubic else "bilinear")
    else:
        soft = _soften(part, width / side, height / side)
        cv2.resize(soft, (side, side), dst=_plane(out), interpolation=cv2.INTER_LINEAR)


def resize_box_into(part: Pixels, box: Box, out: Pixels) -> None:
    """The box (left, top, width, height; fractions of pixels allowed) of `part` [H, W, C] -> `out` [S, S, C]."""
    left, top, width, height = box
    side = len(out)
    scale_x, scale_y = width / side, height / side
    # Pixel centres lie at halves: output pixel i covers (i + 0.5) * scale on the way into the box.
    to_part = np.array(
        [[scale_x, 0, left + scale_x / 2 - 0.5], [0, scale_y, top + scale_y / 2 - 0.5]], np.float64
    )
    cv2.warpAffine(
        _soften(part, scale_x, scale_y),
        to_part,
        (side, side),
        dst=_plane(out),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _soften(part: Pixels, scale_x: float, scale_y: float) -> Pixels:
    sigma_x, sigma_y = _sigma(scale_x), _sigma(scale_y)
    if not sigma_x and not sigma_y:
        return part
    taps = (_num_taps(scale_x), _num_taps(scale_y))
    # A sigma of 0 would be computed from the number of taps; with one tap it means nothing.
    soft = cv2.GaussianBlur(
        part, taps, sigma_x or 1.0, sigmaY=sigma_y or 1.0, borderType=cv2.BORDER_REPLICATE
    )
    return np.asarray(soft, np.uint8)


def _num_taps(scale: float) -> int:
    if scale <= _SHARP_UP_TO:
        return 1
    return 3 if scale <= _THREE_TAPS_UP_TO else 2 * math.ceil(3 * _sigma(scale)) + 1


def _sigma(scale: float) -> float:
    # A triangle of half-width s has the variance s^2 / 6, that of bilinear sampling (s = 1) included.
    if scale <= _SHARP_UP_TO:
        return 0.0
    variance = (scale * scale - 1) / 6
    if scale > _THREE_TAPS_UP_TO:
        return math.sqrt(variance)
    # Taps (a, 1 - 2a, a) have the variance 2a; a Gaussian's taps fall as exp(-1 / 2 sigma^2).
    side = variance / 2
    return math.sqrt(-0.5 / math.log(side / (1 - 2 * side)))


def _resized(part: Pixels, side: int) -> Pixels:
    return np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)


def _resize_antialiased(part: Pixels, out: Pixels, mode: str) -> None:
    import torch  # a second to import, and only strong shrinking and bicubic need it

    # Its uint8 kernel is faster than OpenCV's area averages, and within a level of PIL.
    images = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
    square = torch.nn.functional.interpolate(images, out.shape[:2], mode=mode, antialias=True)
    np.copyto(out, square[0].permute(1, 2, 0).numpy())


def _plane(out: Pixels) -> Pixels:
    return out[:, :, 0] if out.shape[2] == 1 else out
