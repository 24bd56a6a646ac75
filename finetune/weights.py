"""LossWeights: how much each loss counts at the present step, a function of the step alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from configs.base import Duration
from configs.fade import Fade

Steps = Callable[[Duration], int]
"""How many optimizer steps a duration is in this run."""


class LossWeights:
    """Weights by name of the loss. What a run minimises does not depend on whether it was interrupted.

    A loss whose weight is 0 for good is left out; one whose weight fades to 0 or from it stays, so that the weights
    that it trains always have a gradient.
    """

    def __init__(self, weights: Mapping[str, tuple[float, Fade | None]], *, steps: Steps) -> None:
        self._weights = {
            name: (weight, fade, 0 if fade is None else steps(fade.over))
            for name, (weight, fade) in weights.items()
            if weight > 0.0 or (fade is not None and fade.to > 0.0)
        }
        self._step = 0

    def follow(self, step: int) -> None:
        """From now on it is optimizer step `step` (from 0)."""
        self._step = step

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> float:
        weight, fade, over_steps = self._weights[name]
        return weight if fade is None else fade.weight(weight, self._step, over_steps=over_steps)
