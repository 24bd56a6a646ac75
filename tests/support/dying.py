"""Datasets whose worker processes die: importable by the workers themselves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch.utils.data import Dataset


class Dying(Dataset[int]):
    """Gives back the step; at some steps the process is killed, as often as `lives` says."""

    def __init__(self, folder: Path, at: tuple[int, ...], *, deaths: int) -> None:
        self._folder = folder
        self._at = at
        self._deaths = deaths

    def __getitem__(self, step: int) -> int:
        if step in self._at:
            for death in range(self._deaths):
                mark = self._folder / f"step-{step}-death-{death}"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return step


class Failing(Dataset[int]):
    """Fails with an error of its own."""

    def __getitem__(self, step: int) -> int:
        raise RuntimeError(f"no step {step}")
