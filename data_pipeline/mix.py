"""Mix: neighbours of a batch blended (mixup) or pasted into one another (cutmix); drawn in workers, done on the device.

    worker: (seed, pass, sample, copy) of a pair's first -> draw_mix -> shares, boxes
    device: uint8 images -> normalize -> mix_images -> model

A pair is what stands in the slots 2i and 2i + 1 of the *global* batch, and every pair has numbers of its own (timm's
mode "pair"): so it is the same on any number of ranks, in any micro-batch, and after any interruption.
Zhang et al. 2018, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.data import AugmentConfig
from data_pipeline.pixels.augment import varied_as
from data_pipeline.randomness import hash_words, to_unit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Columns of the uniforms: whether at all, whether by cutmix, two for lambda, two for the centre of the box.
_HAPPENS, _CUTS, _SHARE, _CENTRE = 0, 1, slice(2, 4), slice(4, 6)
_NUM_DRAWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What each image of a batch takes from its neighbour (of slot 2i that is 2i + 1, and the other way round)."""

    shares: Tensor
    """float32 [B]; lambda: how much of an image, and of its label, is its own. Equal for both of a pair."""
    boxes: Tensor
    """int64 [B, 4]; left, top, width, height of the part that is the neighbour's; empty where all of it is blended."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Mix:
        """The same with `change` made to every tensor."""
        return Mix(shares=change(self.shares), boxes=change(self.boxes))


def mix_images(images: Tensor, mix: Mix | None) -> Tensor:
    """Float images [B, C, S, S] of any normalization -> mixed, where they lie; without `mix` they stay as they are."""
    if mix is None:
        return images
    # NOTE: products and a sum, and no lerp: that rounds differently in the last places of a tensor, so that an image
    # would depend on how many others are beside it.
    kept = _kept(mix, images.shape[-2], images.shape[-1]).to(images.dtype)
    theirs = images.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return (images * kept).add_(theirs.mul_(1 - kept))


def mix_pixels(images: Tensor, mix: Mix | None) -> Tensor:
    """uint8 images [B, C, S, S] -> mixed and rounded, for people to look at."""
    return images if mix is None else mix_images(images.float(), mix).round_().to(torch.uint8)


def draw_mix(
    config: AugmentConfig, *, size: int, seed: int, epochs: Ints, sample_ids: Ints, copies: Ints
) -> Mix:
    """How images of `size` x `size` pixels are mixed; an even number of them, pair after pair."""
    words = (words[::2, None] for words in (varied_as(config, epochs), sample_ids, copies))
    u = to_unit(hash_words("mix", seed, *words, np.arange(_NUM_DRAWS)))
    happens = u[:, _HAPPENS] < config.mix_probability
    switch = config.mix_switch if config.mixup and config.cutmix else float(bool(config.cutmix))
    cuts = u[:, _CUTS] < switch
    shares = np.where(cuts, _draw_beta(config.cutmix, u[:, _SHARE]), _draw_beta(config.mixup, u[:, _SHARE]))
    boxes = _cut_boxes(shares, size, u[:, _CENTRE]) * (happens & cuts)[:, None]
    # What lies outside of the image is not cut: lambda is what is left of it.
    shares = np.where(cuts, 1.0 - boxes[:, 2] * boxes[:, 3] / size**2, np.where(happens, shares, 1.0))
    return Mix(
        shares=torch.from_numpy(np.repeat(shares.astype(np.float32), 2)),
        boxes=torch.from_numpy(np.repeat(boxes, 2, axis=0)),
    )


def _kept(mix: Mix, height: int, width: int) -> Tensor:
    """[B, 1, H, W] (or [B, 1, 1, 1]): the share of each pixel that is the image's own."""
    left, top, box_width, box_height = (part.view(-1, 1, 1, 1) for part in mix.boxes.unbind(1))
    y = torch.arange(height, device=mix.boxes.device).view(-1, 1)
    x = torch.arange(width, device=mix.boxes.device)
    inside = (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width)
    blended = torch.where(box_width * box_height == 0, mix.shares.view(-1, 1, 1, 1), 1.0)
    return torch.where(inside, 0.0, blended)


def _draw_beta(alpha: float, u: Floats) -> Floats:
    """Beta(alpha, alpha) from two uniforms each: of a Student t with 2 alpha degrees of freedom, T, it is
    (1 + T / sqrt(2 alpha + T^2)) / 2; T by Bailey's polar method (Math. Comp. 62, 1994).
    """
    if not alpha:
        return np.ones(len(u))
    cosines = np.cos(2 * np.pi * u[:, 1])
    with np.errstate(over="ignore", divide="ignore"):  # a small alpha overflows, to the limits that are meant
        square = (u[:, 0] ** (-1.0 / alpha) - 1.0) * cosines**2  # T^2 / (2 alpha)
        distance = 1.0 / np.sqrt(1.0 + 1.0 / square)
    betas: Floats = 0.5 * (1.0 + np.sign(cosines) * distance)
    return betas


def _cut_boxes(shares: Floats, size: int, u: Floats) -> Ints:
    """[n, 4] left, top, width, height: squares of 1 - share of the area, somewhere, clipped to the image."""
    side = np.floor(size * np.sqrt(1.0 - shares)).astype(np.int64)[:, None]
    centre = np.floor(u * size).astype(np.int64)
    first, last = (centre - side // 2).clip(0, size), (centre + (side + 1) // 2).clip(0, size)
    return np.concatenate([first, last - first], axis=1)
