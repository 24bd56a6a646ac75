"""StagePlaces: what a stage of a network puts out, as [B, D, h, w] whatever it is made of.

Shapes: B images, N tokens (prefix tokens first), D channels, h x w places.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from configs.base import ConfigError
from models.token_grid import TokenGrid
from models.token_merging import Tokens


class StagePlaces:
    """Puts tokens back into rows and columns, and channels first; class and register tokens are left out."""

    def __init__(self, model: nn.Module) -> None:
        self._network = type(model).__name__
        self._channel_dim = -1 if getattr(model, "output_fmt", "NCHW") == "NHWC" else 1
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        parts: list[Any] = [
            getattr(model, name, None) for name in ("patch_embed", "stem")
        ]  # a Mixer's is its stem
        embed = next((part for part in parts if hasattr(part, "dynamic_feat_size")), None)
        self._token_grid = None if embed is None else TokenGrid(embed)

    def listen(self) -> Any:
        """Begins to note the size of images; gives the context that ends it."""
        return nullcontext() if self._token_grid is None else self._token_grid.listen()

    def of(self, name: str, output: Tensor | Tokens) -> Tensor:
        """The places of what the stage `name` put out."""
        if isinstance(output, Tokens):
            output = output.spread()
        if output.ndim == 3:
            return self._of_tokens(name, output)
        return output.movedim(self._channel_dim, 1)

    def _of_tokens(self, name: str, x_BND: Tensor) -> Tensor:
        if self._token_grid is None:
            raise ConfigError(
                f"{name} of {self._network} puts out {x_BND.shape[1]} tokens, and this network does not say in which "
                "rows and columns: take one with timm's PatchEmbed (ViT, DeiT, CaiT, Mixer), or with stages of images"
            )
        for prefix in (self._prefix, 0):  # CaiT's class token joins behind its stages
            patches = x_BND[:, prefix:]
            grid = self._token_grid.of(patches.shape[1])
            if grid is not None:
                places: Tensor = patches.transpose(1, 2).unflatten(2, grid)
                return places
        raise RuntimeError(f"{x_BND.shape[1]} tokens of {name} fill no grid: patch dropout is on")
