"""BufferSync: keeps the running statistics of normalization layers equal on all ranks, and finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.world import World


class BufferSync:
    """Averages batch-norm statistics over ranks after each step: every rank holds, evaluates and saves the same model.

    A step whose statistics are not finite is undone, as its gradients are.
    """

    def __init__(self, module: nn.Module, world: World) -> None:
        self._world = world
        self._buffers: list[Tensor] = []
        for layer in module.modules():
            if (
                isinstance(layer, _BatchNorm)
                and layer.running_mean is not None
                and layer.running_var is not None
            ):
                self._buffers += [layer.running_mean, layer.running_var]
        self._good = self._flat() if self._buffers else None

    def refresh(self) -> None:
        """Takes the module's present statistics as good, after they were loaded."""
        self._good = self._flat() if self._buffers else None

    @torch.no_grad()
    def step(self) -> None:
        """Averages the statistics over ranks; without batch norm it does nothing."""
        if self._good is None:
            return
        mean = self._world.sum(self._flat()) / self._world.size
        self._good = torch.where(torch.isfinite(mean).all(), mean, self._good)
        shares = torch.split(self._good, [buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(
            self._buffers, [s.view_as(b) for s, b in zip(shares, self._buffers, strict=True)]
        )

    def _flat(self) -> Tensor:
        return torch.cat([buffer.detach().float().flatten() for buffer in self._buffers])
