"""TokenGrid: rows and columns of a ViT's patch tokens, also where they follow the size of the images."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn


class TokenGrid:
    """Listens to a patch embedding, which alone knows the images; kept outside the module's own attributes."""

    def __init__(self, patch_embed: nn.Module) -> None:
        self._embed: Any = patch_embed
        self._image_shape: tuple[int, int] | None = None

    def listen(self) -> Any:
        """Begins to note the size of images; gives the handle that ends it."""
        return self._embed.register_forward_pre_hook(self._on_images)

    def of(self, num_patches: int) -> tuple[int, int] | None:
        """The (rows, columns) that so many tokens of the last images fill; None where some of them are left out."""
        grid: tuple[int, int] | None = self._embed.grid_size
        if (grid is None or math.prod(grid) != num_patches) and self._image_shape is not None:
            grid = self._embed.dynamic_feat_size(self._image_shape)
        if grid is None or math.prod(grid) != num_patches:
            return None
        return (int(grid[0]), int(grid[1]))

    def _on_images(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._image_shape = (inputs[0].shape[-2], inputs[0].shape[-1])
