"""StepClock: when each step of a training began; at the same place of every loop, as soon as its batch is there."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from torch import nn

from benchmarks.training_loops.turns import Turns
from data_pipeline.batch import Batch
from engine.objective import Loss, Objective

FILE = "steps.json"


class StepClock:
    """Times of the system's monotonic clock, which all processes share."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self._times_s: list[float] = []
        self._stop_at = stop_at
        self._turns = Turns.of(os.environ)

    def tick(self) -> None:
        """A step begins; where trainings take turns, when it is this one's."""
        if self._turns is not None:
            self._turns.tick()
        self._times_s.append(time.monotonic())
        if len(self._times_s) == self._stop_at:
            os.kill(os.getpid(), signal.SIGTERM)  # the run saves after this step and ends

    def write(self, folder: Path) -> None:
        """Leaves the times for the process that started this one."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(self._times_s))


class Clocked:
    """An objective whose calls tick: of each step, where a step has one micro-batch."""

    def __init__(self, objective: Objective, clock: StepClock) -> None:
        self._objective = objective
        self._clock = clock

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        self._clock.tick()
        return self._objective(model, batch)


def read_times(folder: Path) -> list[float]:
    """What `write` left."""
    times: list[float] = json.loads((folder / FILE).read_text())
    return times
