"""ImageText: a network of timm and a Transformer that reads, whose vectors lie in one space (Zhai et al. 2023).

Shapes: B images, N tokens of an image, D its width, T texts of L tokens, E width of the common space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models import ResNet, SwinTransformer, SwinTransformerV2, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from configs.base import ConfigError
from configs.text import PairingConfig
from models.carrier import Carrier, Companion, without_classifier
from models.text_tower import build_text_tower

COMPANION = "text"
"""Name of what is released beside the network that looks: the text tower, and what both have in common."""

_PATH = "image"
_NHWC = "NHWC"

Embedded = tuple[Tensor | None, Tensor | None, Tensor, Tensor]
"""Unit vectors [B, E] of the images and [T, E] of the texts, None where none were given; scale [1] and bias [1]."""


class ImageText(Carrier):
    """Both towers, their projections, and scale and bias of what is a pair; all used in ``forward``, for ZeRO 3."""

    def __init__(self, image: nn.Module, config: PairingConfig) -> None:
        super().__init__()
        self.image: Any = without_classifier(image)
        width = getattr(self.image, "head_hidden_size", self.image.num_features)
        self.pool: nn.Module | None = None
        if config.pool == "attention":
            self.pool, width = _attention_pool(self.image, config.pool_heads), self.image.num_features
        self.image_projection = nn.Linear(width, config.embed_dim)
        self.text: Any = build_text_tower(config.text, embed_dim=config.embed_dim)
        # A logarithm, as in the paper, so that the scale stays positive. One number each: no decay, and always fp32.
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale)]))
        self.bias = nn.Parameter(torch.tensor([config.bias]))
        self.config = config

    @property
    def networks(self) -> Mapping[str, str]:
        return {"": _PATH}

    def companion(self, weights: Mapping[str, Tensor]) -> Companion:
        """The text tower, the projections, and scale and bias."""
        ours = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{_PATH}.")}
        content = self.config.model_dump(mode="json", include=set(PairingConfig.model_fields))
        return Companion(name=COMPANION, config=content, weights=ours)

    def no_weight_decay(self) -> set[str]:
        """What is no matrix but a learned query; the towers name their own."""
        return {"pool.latent"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Of both towers."""
        self.image.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    def forward(self, images: Tensor | None, tokens: Tensor | None = None) -> Embedded:
        """Images [B, C, H, W], tokens int64 [T, L]; each may be left out."""
        seen_BE = None if images is None else self.embed_images(images)
        read_TE = None if tokens is None else functional.normalize(self.text(tokens).float(), dim=1)
        return seen_BE, read_TE, self.log_scale.exp(), self.bias + 0.0

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors float32 [B, E]."""
        pooled = self.image(images) if self.pool is None else self.pool(self._tokens(images))
        return functional.normalize(self.image_projection(pooled).float(), dim=1)

    def _tokens(self, images: Tensor) -> Tensor:
        """What the network makes of an image before it is pooled, [B, N, D]."""
        features: Tensor = self.image.forward_features(images)
        if features.ndim == 3:
            return features
        channels_last = getattr(self.image, "output_fmt", "") == _NHWC
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def _attention_pool(image: Any, heads: int) -> nn.Module:
    """timm's: one learned query, cross-attention to the tokens, an MLP (Zhai et al. 2022)."""
    _check_pool(image, heads)
    return AttentionPoolLatent(image.num_features, num_heads=heads, norm_layer=nn.LayerNorm)


def _check_pool(image: Any, heads: int) -> None:
    if not isinstance(image, VisionTransformer | SwinTransformer | SwinTransformerV2 | ResNet):
        raise ConfigError(
            f"objective.pool 'attention' takes the tokens of a ViT, Swin or ResNet of timm; {type(image).__name__} is "
            "none: use objective.pool 'network'"
        )
    if getattr(image, "attn_pool", None) is not None:
        raise ConfigError(
            "objective.pool is 'attention', and the network pools by attention itself (model.args.global_pool 'map'): "
            "leave one of them out"
        )
    if isinstance(getattr(image, "norm", None), nn.Identity):
        raise ConfigError(
            "objective.pool is 'attention', but the network normalizes after its own pooling: set model.args.fc_norm "
            "to false"
        )
    if image.num_features % heads:
        raise ConfigError(
            f"objective.pool_heads {heads} does not divide {image.num_features}, the network's width"
        )
