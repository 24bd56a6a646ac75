"""Ema: an exponential moving average of a model's weights, kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages parameters and floating buffers over steps; early steps count for less of a past that is not there.

    The decay of step t is ``min(decay, (1 + t) / (10 + t))``, so that the random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._live = list(_averaged(module).values())
        self._names = list(_averaged(module))
        self._average = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average within, and its own weights again afterwards, bit for bit."""
        with torch.no_grad():
            own = [tensor.detach().clone() for tensor in self._live]
            torch._foreach_copy_(self._live, self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the module's own names."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a saved average; raises KeyError when it is of another model."""
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state[name])


def _averaged(module: nn.Module) -> dict[str, Tensor]:
    """What is averaged: counters (integer buffers) and tables that are not saved keep the module's values."""
    saved = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in saved.items() if tensor.is_floating_point()}
