"""Masked image modelling: what is lost by hiding patches of an image and drawing them again.

batch -> masks -> model(images, masks) -> hidden pixels -> distance to the true ones -> Loss
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.base import ConfigError
from data_pipeline.batch import Batch, normalize
from engine.objective import Loss
from models.masked_autoencoder import MaskedAutoencoder
from models.patches import patchify, pick
from models.simmim import SimMim
from pretrain.config import MaeConfig, SimMimConfig
from pretrain.masks import random_order

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedAutoencoding:
    """He et al. 2022: squared distance to the hidden patches, each less its mean and over its deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    patch_size: int
    num_patches: int
    num_visible: int

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        images = normalize(batch.images, self.mean, self.std)
        visible, masked = self.split(batch)
        drawn = model(images, visible, masked).float()
        return Loss(total=(drawn - self.targets(images, masked)).square().mean())

    def split(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positions of the patches that each image shows, int64 [B, V], and of those that it hides [B, M]."""
        order = random_order(batch, self.num_patches, seed=self.seed)
        return order[:, : self.num_visible], order[:, self.num_visible :]

    def targets(self, images: Tensor, masked: Tensor) -> Tensor:
        """What is to be drawn, [B, M, pixels of a patch]."""
        patches = pick(patchify(images, self.patch_size), masked)
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        return (patches - mean) / (variance + _EPSILON).sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleMasking:
    """SimMIM, Xie et al. 2022: absolute distance to the hidden pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    patch_size: int
    """Side of a mask patch in pixels."""
    grid_size: int
    """Mask patches along a side of the image."""
    num_masked: int

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        images = normalize(batch.images, self.mean, self.std)
        mask = self.mask(batch)
        drawn = model(images, mask).float()
        hidden = mask.repeat_interleave(self.patch_size, dim=1).repeat_interleave(self.patch_size, dim=2)
        # Every image hides as many pixels as every other: a mean over images stays one over hidden pixels.
        num_hidden = images.numel() * self.num_masked / self.grid_size**2
        return Loss(total=((drawn - images).abs() * hidden.unsqueeze(1)).sum() / num_hidden)

    def mask(self, batch: Batch) -> Tensor:
        """Bool [B, G, G], true where an image is hidden."""
        order = random_order(batch, self.grid_size**2, seed=self.seed)
        hidden = order.argsort(dim=1) < self.num_masked
        return hidden.view(len(batch), self.grid_size, self.grid_size)


def build_mae(
    encoder: nn.Module, config: MaeConfig, *, mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> tuple[MaskedAutoencoder, MaskedAutoencoding]:
    """The network around `encoder`, and what it minimises."""
    model = MaskedAutoencoder(
        encoder, width=config.decoder_width, depth=config.decoder_depth, num_heads=config.decoder_heads
    )
    patches = model.encoder.patch_embed
    objective = MaskedAutoencoding(
        mean=mean,
        std=std,
        seed=seed,
        patch_size=patches.patch_size[0],
        num_patches=patches.num_patches,
        num_visible=patches.num_patches - count_masked(patches.num_patches, config.mask_ratio),
    )
    return model, objective


def build_simmim(
    encoder: nn.Module, config: SimMimConfig, *, mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> tuple[SimMim, SimpleMasking]:
    """The network around `encoder`, and what it minimises."""
    model = SimMim(encoder, mask_patch=config.mask_patch)
    grid_size = model.encoder.patch_embed.img_size[0] // config.mask_patch
    objective = SimpleMasking(
        mean=mean,
        std=std,
        seed=seed,
        patch_size=config.mask_patch,
        grid_size=grid_size,
        num_masked=count_masked(grid_size**2, config.mask_ratio),
    )
    return model, objective


def count_masked(count: int, ratio: float) -> int:
    """`ratio` of `count` patches rounded up, as in both papers; at least one stays visible."""
    if count < 2:
        raise ConfigError(
            f"objective: an image of {count} patch cannot show one and hide another; make the patches smaller"
        )
    return min(math.ceil(count * ratio - _EPSILON), count - 1)
