"""Words: what rank 0 of a worker tells the other ranks, through files in a folder that all of them see.

trial-0.json, trial-1.json ... or end.json from rank 0; done-0.rank-3 and so on from the others
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.2
_OTHERS_S = 120.0
"""So long the others may take to end after rank 0; SLURM ends the step sooner if one of them failed."""


@dataclass(slots=True, kw_only=True)
class Words:
    """The folder of one start of a job: what was said in an earlier one counts no more."""

    folder: Path
    rank: int
    num_ranks: int
    end_code: int = 0
    """What rank 0 said that all should end with."""
    _number: int = 0

    @classmethod
    def of(cls, folder: Path, environ: Mapping[str, str]) -> Words:
        """For this process, by what srun and torchrun say; alone where nobody does."""
        job, restart = environ.get("SLURM_JOB_ID", "here"), environ.get("SLURM_RESTART_COUNT", "0")
        return cls(
            folder=folder / f"{job}.{restart}",
            rank=int(environ.get("RANK", "0")),
            num_ranks=int(environ.get("WORLD_SIZE", "1")),
        )

    def say_trial(self, arguments: Sequence[str]) -> None:
        """Rank 0: the next trial has these arguments."""
        self._write(f"trial-{self._number}.json", json.dumps(list(arguments)))

    def wait_for_others(self) -> list[int]:
        """Rank 0: waits until all others have ended the trial and its port is free again; returns their exit codes.

        TimeoutError when one never does.
        """
        done = [self.folder / f"done-{self._number}.rank-{rank}" for rank in range(1, self.num_ranks)]
        deadline = time.monotonic() + _OTHERS_S
        while missing := [path.name for path in done if not path.exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} ranks did not end their trial within {_OTHERS_S:.0f} s")
            time.sleep(_POLL_S)
        self._number += 1
        return [int(json.loads(path.read_text())) for path in done]

    def say_end(self, code: int) -> None:
        """Rank 0: there is no further trial."""
        self._write("end.json", json.dumps(code))

    def next_trial(self) -> list[str] | None:
        """The others: the arguments of the next trial; None when rank 0 has said the end."""
        trial, end = self.folder / f"trial-{self._number}.json", self.folder / "end.json"
        _wait(lambda: trial.exists() or end.exists(), self.folder)
        if trial.exists():
            return list(json.loads(trial.read_text()))
        self.end_code = int(json.loads(end.read_text()))
        return None

    def say_done(self, code: int) -> None:
        """The others: this rank has ended the trial, with this exit code."""
        self._write(f"done-{self._number}.rank-{self.rank}", json.dumps(code))
        self._number += 1

    def _write(self, name: str, text: str) -> None:
        if self.num_ranks == 1:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{name}.{os.getpid()}"
        aside.write_text(text)
        aside.replace(self.folder / name)


def _wait(condition: Callable[[], bool], folder: Path) -> None:
    """Returns when it holds; looks into the folder, so that an NFS client looks again."""
    while not condition():
        if folder.exists():
            os.listdir(folder)
        time.sleep(_POLL_S)
