"""Verdict: what was decided after a start of a job, and why; kept beside the ends of its ranks."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.comeback.attempts import write_json
from launch.submission.record import attempt_folder, launch_folder

Action = Literal["finished", "requeue", "leave", "stop", "give_up"]
"""``leave``: SLURM or the user has already decided; ``stop``: asked for; ``give_up``: going on would be in vain."""

_GAVE_UP = "gave_up.json"
_FILE = "verdict.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The rank whose end made the others end."""

    code: int | None
    """Exit code; None when it left no word, as after a power cut or the kernel's out-of-memory killer."""
    rank: int
    node: str
    step: int | None
    """Steps that the run had done."""
    line: str
    """The error, as far as it is known."""

    def is_like(self, other: Failure | None) -> bool:
        """Whether it is the same failure again: code, step and error, whatever numbers (processes, times) are in it."""
        return other is not None and self._key == other._key

    @property
    def _key(self) -> tuple[int | None, int | None, str]:
        return self.code, self.step, re.sub(r"0x[0-9a-f]+|\d+", "#", self.line)

    def __str__(self) -> str:
        what = "ended without a word" if self.code is None else f"ended with exit code {self.code}"
        where = "before the first step" if not self.step else f"after step {self.step}"
        return f"rank {self.rank} on {self.node} {what} {where}" + (f": {self.line}" if self.line else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to become of the job."""

    action: Action
    reason: str
    failure: Failure | None = None
    saved_step: int | None = None
    """Of the newest checkpoint when the start ended."""
    exclude: tuple[str, ...] = ()
    """Nodes that the next start should do without."""
    time: float = 0.0
    """Seconds since 1970."""

    def __str__(self) -> str:
        without = f"; without {', '.join(self.exclude)}" if self.exclude else ""
        return f"{self.action.replace('_', ' ')}: {self.reason}{without}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """Why a job does not come back by itself any more."""

    reason: str
    job_id: str
    restart: int
    time: float


def write_verdict(run_folder: Path, verdict: Verdict, *, job_id: str, restart: int) -> None:
    """Keeps it; when the job gave up also where `read_gave_up` looks, from where any other verdict takes it away."""
    attempt, noted = attempt_folder(run_folder, job_id, restart), launch_folder(run_folder) / _GAVE_UP
    attempt.mkdir(parents=True, exist_ok=True)
    write_json(attempt / _FILE, asdict(verdict))
    if verdict.action == "give_up":
        gave_up = GaveUp(reason=verdict.reason, job_id=job_id, restart=restart, time=verdict.time)
        write_json(noted, asdict(gave_up))
    else:
        noted.unlink(missing_ok=True)


def read_gave_up(run_folder: Path) -> GaveUp | None:
    """Why the newest job of this run gave up, or None."""
    try:
        return GaveUp(**json.loads((launch_folder(run_folder) / _GAVE_UP).read_bytes()))
    except FileNotFoundError:
        return None


def read_history(run_folder: Path, *, job_id: str, before: int) -> tuple[Verdict, ...]:
    """Verdicts on the earlier starts of a job, oldest first; what was before a give-up or a stop counts no more.

    A start that SLURM itself took away (preemption, node failure) may have none.
    """
    files = [attempt_folder(run_folder, job_id, restart) / _FILE for restart in range(before)]
    verdicts = [_parse(json.loads(file.read_bytes())) for file in files if file.is_file()]
    last_end = max(
        (k for k, verdict in enumerate(verdicts) if verdict.action in ("give_up", "stop")), default=-1
    )
    return tuple(verdicts[last_end + 1 :])


def _parse(values: dict[str, Any]) -> Verdict:
    failure = values.pop("failure")
    return Verdict(
        failure=None if failure is None else Failure(**failure),
        exclude=tuple(values.pop("exclude")),
        **values,
    )
