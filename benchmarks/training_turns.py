"""RunningTraining: a process of its own that trains for a turn when it is told to, and is frozen in between.

A shared machine's speed drifts by a tenth within minutes. Trainings that take turns of some seconds meet the same
drift, and each pays for its imports and the start of its MLflow follower once, before anything counts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.result_file import ROOT
from benchmarks.training_loops.turns import DONE, FOLDER, GO, STEPS

_POLL_S = 1.0


class RunningTraining:
    """A training and all processes it started; a context manager that ends them."""

    def __init__(
        self, command: Sequence[str], *, folder: Path, steps: int, environment: Mapping[str, str]
    ) -> None:
        folder.mkdir()
        for name in (GO, DONE):
            os.mkfifo(folder / name)
        # NOTE: open for both directions, so that opening waits for nobody.
        self._go = os.open(folder / GO, os.O_RDWR)
        self._done = os.open(folder / DONE, os.O_RDWR)
        self._output = folder / "output.log"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, FOLDER: str(folder), STEPS: str(steps)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> RunningTraining:
        self._read()  # it stands before its first step
        self._signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._go)
        os.close(self._done)

    def turn(self) -> list[float]:
        """Trains for a turn and returns how long each of its steps took, in seconds."""
        self._signal(signal.SIGCONT)
        os.write(self._go, b".")
        times = self._read()
        self._signal(signal.SIGSTOP)
        return [after - before for before, after in pairwise(times)]

    def _read(self) -> list[float]:
        line = b""
        while not line.endswith(b"\n"):
            if select.select([self._done], [], [], _POLL_S)[0]:
                line += os.read(self._done, 1 << 16)
            elif self._process.poll() is not None:
                raise RuntimeError(
                    f"the training ended with {self._process.returncode}:\n{self._output.read_text()[-4000:]}"
                )
        times: list[float] = json.loads(line)
        return times

    def _signal(self, number: signal.Signals) -> None:
        """Ranks, loader workers, followers: ranks of torchrun have sessions of their own, so no group has them all."""
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
