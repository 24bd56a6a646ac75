"""Fade: how the weight of a loss moves to another over a part of the run."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from configs.base import DurationField, Section


class Fade(Section):
    """The weight goes to `to`, and stays there."""

    to: float = Field(ge=0.0)
    over: DurationField
    """How long it takes, from the first step on."""
    shape: Literal["linear", "cosine"] = "linear"

    def weight(self, start: float, step: int, *, over_steps: int) -> float:
        """What has become of the weight `start` at optimizer step `step` (from 0), where `over` is so many steps."""
        if step >= over_steps:
            return self.to
        done = step / over_steps
        left = 1.0 - done if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.to + (start - self.to) * left
