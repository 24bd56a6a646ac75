"""Masked autoencoder (He et al. 2022): the encoder sees a quarter of the patches, a light decoder draws the others.

Shapes: B batch, N patches, V visible, M masked (N = V + M), P prefix tokens (class, registers), D and E the widths of
encoder and decoder, S side of a patch in pixels.
"""

from __future__ import annotations

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from configs.base import ConfigError
from models.attention import use_attend, wished_kernel
from models.patches import pick
from models.pretext import Pretext, check_plain_vit, encode_tokens


class MaskedAutoencoder(Pretext):
    """A ViT of timm as encoder, and blocks of timm as decoder.

    Positions begin as sines and cosines on both sides; the encoder's, a parameter in timm, are then learned.
    """

    decoder_positions: Tensor

    def __init__(self, encoder: nn.Module, *, width: int, depth: int, num_heads: int) -> None:
        check_plain_vit(encoder, task="mae")
        super().__init__(encoder)
        self.encoder.__class__ = _VisibleViT
        patches = self.encoder.patch_embed
        if width % num_heads or width % 4 or self.encoder.embed_dim % 4:
            raise ConfigError(
                f"objective.decoder_width {width} must be a multiple of its {num_heads} heads and of 4, and the "
                f"encoder's width {self.encoder.embed_dim} a multiple of 4 (sine-cosine positions)"
            )
        self.decoder_embed = nn.Linear(self.encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_blocks = nn.Sequential(*(Block(width, num_heads, qkv_bias=True) for _ in range(depth)))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(
            width, patches.patch_size[0] * patches.patch_size[1] * self.encoder.in_chans
        )
        positions_NE = build_sincos2d_pos_embed(patches.grid_size, width)
        self.register_buffer("decoder_positions", positions_NE, persistent=False)
        use_attend(self.decoder_blocks, wished_kernel(self.encoder))
        self._init_weights()

    def forward(self, images: Tensor, visible: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], positions int64 [B, V] and [B, M] -> the masked patches [B, M, S * S * C]."""
        if visible is None or masked is None:
            features: Tensor = self.encoder(images)
            return features
        latent_BPVE = self.decoder_embed(self.encoder(images, visible))
        num_prefix = self.encoder.num_prefix_tokens
        prefix_BPE, seen_BVE = latent_BPVE[:, :num_prefix], latent_BPVE[:, num_prefix:]
        positions_NE = self.decoder_positions
        tokens_BNE = self.mask_token.to(seen_BVE.dtype).repeat(len(images), len(positions_NE), 1)
        tokens_BNE = tokens_BNE.scatter(1, visible.unsqueeze(2).expand_as(seen_BVE), seen_BVE)
        tokens_BNE = tokens_BNE + positions_NE
        decoded = self.decoder_blocks(torch.cat([prefix_BPE.to(tokens_BNE.dtype), tokens_BNE], dim=1))
        drawn: Tensor = self.decoder_pred(self.decoder_norm(pick(decoded[:, num_prefix:], masked)))
        return drawn

    @torch.no_grad()
    def _init_weights(self) -> None:
        encoder = self.encoder
        positions_ND = build_sincos2d_pos_embed(encoder.patch_embed.grid_size, encoder.embed_dim)
        encoder.pos_embed.zero_()[:, -len(positions_ND) :] = positions_ND
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (encoder.blocks, self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(_init_linear)


class _VisibleViT(VisionTransformer):
    """timm's ViT that can be called with the patches it may see."""

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Pooled features [B, D] of whole images; with positions int64 [B, V] the tokens [B, P + V, D] of these."""
        if visible is None:
            features: Tensor = super().forward(images)
            return features
        tokens = self._pos_embed(self.patch_embed(images))
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        return encode_tokens(self, torch.cat([prefix, pick(patches, visible)], dim=1))


def _init_linear(module: nn.Module) -> None:
    """The paper's: Xavier's uniform distribution, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
