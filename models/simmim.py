"""SimMIM (Xie et al. 2022): masked patches are replaced by a learned token, and a linear head draws all pixels.

Shapes: B batch, C channels, H side of the image, G side of the grid of mask patches, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import SwinTransformer, VisionTransformer
from torch import Tensor, nn

from configs.base import ConfigError
from models.pretext import Pretext, check_plain_vit, encode_tokens


class SimMim(Pretext):
    """A ViT or Swin of timm as encoder, a 1x1 convolution as head."""

    def __init__(self, encoder: nn.Module, *, mask_patch: int) -> None:
        _check(encoder)
        super().__init__(encoder)
        is_swin = isinstance(encoder, SwinTransformer)
        self.encoder.__class__ = _MaskableSwin if is_swin else _MaskableViT
        embed: Any = self.encoder.patch_embed
        self.tokens_per_patch = mask_patch // embed.patch_size[0]
        """Side of a mask patch in tokens."""
        self.stride = embed.patch_size[0] * (2 ** (self.encoder.num_layers - 1) if is_swin else 1)
        """Pixels between neighbours in the encoder's last map."""
        _check_sizes(mask_patch, embed.patch_size[0], embed.img_size[0], self.stride)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed.proj.out_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Conv2d(
            self.encoder.num_features, self.stride**2 * self.encoder.in_chans, kernel_size=1
        )

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images [B, C, H, H], mask bool [B, G, G], true where hidden -> pixels [B, C, H, H]."""
        if mask is None:
            features: Tensor = self.encoder(images)
            return features
        side = self.tokens_per_patch
        of_tokens = mask.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        map_BDhw = self.encoder(images, of_tokens, self.mask_token)
        return nn.functional.pixel_shuffle(self.head(map_BDhw), self.stride)


class _MaskableViT(VisionTransformer):
    """timm's ViT that can be called with a mask."""

    def forward(  # type: ignore[override]
        self, images: Tensor, mask: Tensor | None = None, token: Tensor | None = None
    ) -> Tensor:
        """Pooled features [B, D]; with a mask bool [B, h, w] and a token [1, 1, D] the last map [B, D, h, w]."""
        if mask is None or token is None:
            features: Tensor = super().forward(images)
            return features
        patches_BND = self.patch_embed(images)
        patches_BND = torch.where(mask.flatten(1).unsqueeze(2), token.to(patches_BND.dtype), patches_BND)
        tokens_BND = encode_tokens(self, self._pos_embed(patches_BND))[:, self.num_prefix_tokens :]
        grid: Tensor = tokens_BND.transpose(1, 2).reshape(len(images), -1, *mask.shape[1:])
        return grid


class _MaskableSwin(SwinTransformer):
    """timm's Swin that can be called with a mask."""

    def forward(self, images: Tensor, mask: Tensor | None = None, token: Tensor | None = None) -> Tensor:
        """As `_MaskableViT`; the last map is coarser than the mask."""
        if mask is None or token is None:
            features: Tensor = super().forward(images)
            return features
        patches_BhwD = self.patch_embed(images)
        patches_BhwD = torch.where(mask.unsqueeze(3), token.to(patches_BhwD.dtype), patches_BhwD)
        last: Tensor = self.norm(self.layers(patches_BhwD))
        return last.permute(0, 3, 1, 2)


def _check(encoder: nn.Module) -> None:
    if type(encoder) is not SwinTransformer:
        check_plain_vit(encoder, task="simmim")


def _check_sizes(mask_patch: int, patch: int, image: int, stride: int) -> None:
    if mask_patch % patch or image % mask_patch:
        raise ConfigError(
            f"objective.mask_patch is {mask_patch} pixels: it must be a multiple of the model's patches of {patch} and "
            f"divide data.image_size {image}"
        )
    if image % stride:
        raise ConfigError(
            f"data.image_size {image} is no multiple of {stride}, the pixels between two places of the model's last "
            "map, from which its pixels are drawn"
        )
