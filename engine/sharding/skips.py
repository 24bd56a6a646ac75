"""SkipCount: how many steps changed nothing since they were not finite, counted on the device without waiting."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor


class SkipState(TypedDict):
    """What a checkpoint keeps, equal on all ranks."""

    skipped: int
    skipped_in_a_row: int


class SkipCount:
    """Skipped steps of the whole run, and those since the last that was not skipped."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)
        self._none, self._one = torch.zeros((), device=device), torch.ones((), device=device)

    def count(self, skipped: Tensor | bool) -> None:
        """Takes in a step: 1.0 or true when it was skipped."""
        found = skipped if isinstance(skipped, Tensor) else self._one if skipped else self._none
        self.total += found
        self.in_a_row.add_(found).mul_(found)

    def state_dict(self) -> SkipState:
        """NOTE: waits for the device."""
        return {"skipped": int(self.total.item()), "skipped_in_a_row": int(self.in_a_row.item())}

    def load_state_dict(self, state: SkipState) -> None:
        """Takes over what `state_dict` gave."""
        self.total.fill_(state["skipped"])
        self.in_a_row.fill_(state["skipped_in_a_row"])
