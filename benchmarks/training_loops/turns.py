"""Turns: trainings that stand side by side and run one after the other, frozen while another one runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

FOLDER = "TURNS_FOLDER"
STEPS = "TURNS_STEPS"
GO, DONE = "go", "done"
"""Named pipes: a byte lets the training go on, and a line of JSON says when the steps of its turn began."""


class Turns:
    """The side of the training: after every so many steps it says how they went, and waits until it is its turn."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self._go = os.open(folder / GO, os.O_RDONLY)
        self._done = os.open(folder / DONE, os.O_WRONLY)
        self._steps = steps
        self._times_s: list[float] = []
        self._is_new = True

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Turns | None:
        """None for a training that takes no turns, and for ranks other than 0, which wait for rank 0 anyway."""
        if FOLDER not in environment or environment.get("RANK", "0") != "0":
            return None
        return cls(Path(environment[FOLDER]), steps=int(environment[STEPS]))

    def tick(self) -> None:
        """A step begins: at once, or at the beginning of the next turn."""
        self._times_s.append(time.monotonic())
        if self._is_new or len(self._times_s) > self._steps:
            os.write(self._done, json.dumps(self._times_s).encode() + b"\n")
            os.read(self._go, 1)
            self._times_s, self._is_new = [time.monotonic()], False
