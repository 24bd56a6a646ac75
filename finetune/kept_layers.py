"""KeptLayers: layers of a teacher of which each of its answers has a grid of numbers, a map or features of places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLayers:
    """Layers of a teacher that answers tell something of: their maps, or their tokens."""

    layers: tuple[int, ...] = ()
    """As they were asked for."""
    depths: tuple[float, ...] = ()
    """How far through the network each is, 0 to 1."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of what is kept of each for an image: height and width of a map; D, height and width of tokens."""

    @property
    def count(self) -> int:
        """Numbers for an image."""
        return sum(map(math.prod, self.shapes))

    def shown(self, found: Sequence[Tensor], *, grid: int) -> KeptLayers:
        """With the shapes of what was found of a batch, at most `grid` places on a side."""
        shapes = tuple((*one.shape[1:-2], *(min(grid, side) for side in one.shape[-2:])) for one in found)
        return replace(self, shapes=shapes)

    def pooled(self, found: Sequence[Tensor]) -> Tensor:
        """[B, count]: each layer brought to its grid, its greatest magnitude being 1."""
        return torch.cat([_pool(one, shape) for one, shape in zip(found, self.shapes, strict=True)], dim=1)

    def parts(self, numbers: Tensor, places: Sequence[int]) -> tuple[Tensor, ...]:
        """What belongs to these places in `layers`, in its shape, of numbers [B, count]."""
        found = numbers.split(list(map(math.prod, self.shapes)), dim=1)
        return tuple(found[place].unflatten(1, self.shapes[place]) for place in places)


NO_LAYERS = KeptLayers()


def _pool(found: Tensor, shape: Sequence[int]) -> Tensor:
    """[B, ..., h, w] -> [B, numbers of `shape`]"""
    height, width = shape[-2:]
    pooled = F.adaptive_avg_pool2d(found, (height, width)).flatten(1)
    return pooled / pooled.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(pooled.dtype).tiny)
