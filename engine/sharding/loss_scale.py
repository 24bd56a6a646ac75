"""Loss scale: the factor that keeps fp16 gradients above the smallest number fp16 knows (Micikevicius et al. 2018)."""

from __future__ import annotations

from typing import TypedDict

_SMALLEST, _LARGEST = 1.0, 2.0**32
_PATIENCE = 1000
"""Steps without an overflow after which twice the factor is tried."""


class LossScaleState(TypedDict):
    """What a checkpoint keeps."""

    factor: float
    good_steps: int


class LossScale:
    """The factor of the next step, equal on all ranks: half after an overflow, twice after a thousand steps without.

    DeepSpeed's ZeRO optimizers take it as an external scale. The scaler that DeepSpeed makes for autocast in fp16 is
    not used: it clips by the norm of the scaled gradients, and no checkpoint holds it.
    """

    def __init__(self, *, power: int) -> None:
        self.factor = 2.0**power
        self._good_steps = 0

    def update(self, *, overflowed: bool) -> None:
        """Learns how the step with this factor went."""
        if overflowed:
            self.factor, self._good_steps = max(self.factor / 2, _SMALLEST), 0
        elif self._good_steps + 1 == _PATIENCE:
            self.factor, self._good_steps = min(self.factor * 2, _LARGEST), 0
        else:
            self._good_steps += 1

    def state_dict(self) -> LossScaleState:
        return {"factor": self.factor, "good_steps": self._good_steps}

    def load_state_dict(self, state: LossScaleState) -> None:
        self.factor, self._good_steps = state["factor"], state["good_steps"]
