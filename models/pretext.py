"""Pretext: a network around an encoder that is trained without labels; the encoder is what is released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers.patch_embed import PatchEmbed
from timm.models import VisionTransformer, checkpoint_seq
from torch import Tensor, nn

from configs.base import ConfigError
from models.carrier import Carrier, without_classifier

_PATH = "encoder"


class Pretext(Carrier):
    """A timm network without its classifier as ``encoder``, and what a task needs beside it.

    Called with images alone it gives the encoder's pooled features [B, D]; called with a mask, what the task predicts.
    Both go through ``forward``, so that ZeRO 3 gathers and autocast casts.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = without_classifier(encoder)

    @property
    def networks(self) -> Mapping[str, str]:
        return {"": _PATH}

    def no_weight_decay(self) -> set[str]:
        """The encoder's own choice, and the mask token."""
        return {"mask_token", *(f"{_PATH}.{name}" for name in self.encoder.no_weight_decay())}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models have it; a decoder is small and keeps its activations."""
        self.encoder.set_grad_checkpointing(enable)


def check_plain_vit(model: nn.Module, *, task: str) -> None:
    """Raises ConfigError unless tokens of the ViT can be left out or replaced, and each of its weights is then used."""
    if type(model) is not VisionTransformer:
        wanted = "a ViT" if task == "mae" else "a ViT or Swin"
        raise ConfigError(f"objective.name {task!r} takes {wanted} of timm; {type(model).__name__} is none")
    obstacles = {
        f"its patches come from a {type(model.patch_embed).__name__}, which lets masked pixels through": (
            type(model.patch_embed) is not PatchEmbed
        ),
        "its image size is not fixed (leave dynamic_img_size out)": model.dynamic_img_size,
        "it has no position embedding (leave pos_embed out)": model.pos_embed is None,
        "it normalizes after pooling (set model.args.fc_norm to false)": isinstance(model.norm, nn.Identity),
        f"its global_pool {model.global_pool!r} has weights of its own (take 'token' or 'avg')": (
            model.attn_pool is not None
        ),
    }
    found = [text for text, is_there in obstacles.items() if is_there]
    if found:
        raise ConfigError(f"objective.name {task!r} cannot train this model: {'; '.join(found)}")


def encode_tokens(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """The part of timm's ``forward_features`` behind patches and positions; [B, N, D] -> [B, N, D]."""
    tokens = vit.norm_pre(vit.patch_drop(tokens))
    tokens = checkpoint_seq(vit.blocks, tokens) if vit.grad_checkpointing else vit.blocks(tokens)
    encoded: Tensor = vit.norm(tokens)
    return encoded
