"""Progressive attention: switched on from the layers next to the input to those next to the output, over a schedule.

A layer that is off is skipped: neither its attention nor the norm before it is computed. A layer that comes in adds its
attention times a share that grows from 0 to 1, so the loss has no jump. Shares are a function of the step alone: what
a run computes does not depend on whether it was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from configs.attention import ProgressiveConfig
from configs.base import ConfigError
from models.dynamic import DynamicBlock
from models.gates import GATES
from models.token_merging import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """When each layer comes in, in optimizer steps; pure."""

    over_steps: int
    """After so many, all layers are all there."""
    fade_steps: int | None
    """How long a layer takes to come in; None: until the next begins."""
    start: int
    """Layers that are on from the beginning."""

    def shares(self, step: int, *, num_layers: int) -> list[float]:
        """How much of each layer, from the input on, is there at optimizer step `step` (from 0): 0 off, 1 on."""
        num_fresh = num_layers - self.start
        if step >= self.over_steps:
            return [1.0] * num_layers
        fade = self.over_steps / (num_fresh + 1) if self.fade_steps is None else float(self.fade_steps)
        distance = (self.over_steps - fade) / num_fresh
        fresh = [_share(step - distance * (index + 1), fade) for index in range(num_fresh)]
        return [1.0] * self.start + fresh


def _share(elapsed: float, fade: float) -> float:
    if elapsed < 0.0 or fade == 0.0:
        return float(elapsed >= 0.0)
    return min(elapsed / fade, 1.0)


class AttentionSwitches:
    """The layers of a network that are switched on over a run, and the times at which they are."""

    def __init__(self, model: nn.Module, activation: Activation) -> None:
        self._layers = switched_layers(model)
        self._activation = activation

    def follow(self, step: int) -> None:
        """Sets every layer to its share at optimizer step `step`."""
        for layer, share in zip(self._layers, self.shares(step), strict=True):
            layer.set_share(share)

    def shares(self, step: int) -> list[float]:
        """The shares at a step."""
        return self._activation.shares(step, num_layers=len(self._layers))


class Switched(nn.Module):
    """What a layer becomes whose attention can be off, coming in, or on; weights and their names stay."""

    share: Tensor
    is_on: bool

    def set_share(self, share: float) -> None:
        """0 is off, 1 is on, between them the layer is coming in."""
        self.is_on = share > 0.0
        self.share.fill_(share)


def use_progressive(model: nn.Module, config: ProgressiveConfig) -> nn.Module:
    """Makes the attention of a network switchable, in place; all of it is on until something switches it."""
    layers = [module for module in model.modules() if type(module) in _BLOCKS or type(module) in GATES]
    if not layers:
        raise ConfigError(
            f"model.attention.progressive: {type(model).__name__} has no attention that can be switched; the blocks of "
            "timm's ViT and Swin have, and the gates of a CNN (set model.attention.gates, or take an EfficientNet)"
        )
    if config.start >= len(layers):
        raise ConfigError(
            f"model.attention.progressive.start is {config.start}, but the network has {len(layers)} layers with "
            f"attention: at most {len(layers) - 1} can be on from the beginning, or nothing is left to switch on"
        )
    for layer in layers:
        switchable: Any = layer
        switchable.__class__ = _BLOCKS.get(type(layer)) or _switched_gate(type(layer))
        layer.register_buffer("share", torch.ones(()), persistent=False)
        switchable.is_on = True
    return model


def switched_layers(model: nn.Module) -> list[Switched]:
    """The layers that `use_progressive` made switchable, from the input on."""
    return [module for module in model.modules() if isinstance(module, Switched)]


class _SwitchedBlock(Switched, Block):
    """timm's ViT block."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if self.is_on:
            attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
            x = x + self.share * self.drop_path1(self.ls1(attended))
        mixed: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return mixed


class _SwitchedDynamicBlock(Switched, DynamicBlock):
    """A ViT block that merges tokens; off, it leaves them as they are."""

    def attended(self, tokens: Tokens, share: Tensor | None = None) -> Tokens:
        return super().attended(tokens, self.share) if self.is_on else tokens


class _SwitchedSwinBlock(Switched, SwinTransformerBlock):
    """timm's Swin block, over [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_on:
            attended: Tensor = self._attn(self.norm1(x))  # type: ignore[no-untyped-call]
            x = x + self.share * self.drop_path1(attended)
        tokens = x.flatten(1, 2)
        mixed: Tensor = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return mixed.reshape(x.shape)


class _SwitchedSwinV2Block(Switched, SwinTransformerV2Block):
    """timm's Swin v2 block, which normalizes what comes out of a branch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.is_on:
            x = x + self.share * self.drop_path1(self.norm1(self._attn(x)))
        tokens = x.flatten(1, 2)
        mixed: Tensor = tokens + self.drop_path2(self.norm2(self.mlp(tokens)))
        return mixed.reshape(x.shape)


class _SwitchedGate(Switched):
    """A gate, or another layer of a CNN that leaves the shape as it is: off, it is the identity."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on:
            return x
        gated: Tensor = super().forward(x)
        return torch.lerp(x, gated, self.share.to(x.dtype))


_BLOCKS: dict[type[nn.Module], type[Switched]] = {
    Block: _SwitchedBlock,
    DynamicBlock: _SwitchedDynamicBlock,
    SwinTransformerBlock: _SwitchedSwinBlock,
    SwinTransformerV2Block: _SwitchedSwinV2Block,
}


def _switched_gate(kind: type[nn.Module]) -> type[Switched]:
    return type(f"Switched{kind.__name__}", (_SwitchedGate, kind), {})
