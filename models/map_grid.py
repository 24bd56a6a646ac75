"""Maps of any two grids brought to one: a fine map can be summed up exactly, a coarse one cannot be sharpened."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def on_one_grid(*maps: Tensor) -> tuple[Tensor, ...]:
    """Each [B, ..., h, w] average-pooled to the smallest height and the smallest width among them, in float32."""
    grid = (min(found.shape[-2] for found in maps), min(found.shape[-1] for found in maps))
    return tuple(F.adaptive_avg_pool2d(found.float(), grid) for found in maps)
