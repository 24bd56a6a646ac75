"""What SLURM says about jobs: squeue for those it still holds, sacct for those that have left it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

ALIVE = frozenset(
    (
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "SUSPENDED",
        "STOPPED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
    )
)
"""States in which SLURM may still run the job, now or later."""

_TIMEOUT_S = 30.0  # a busy controller answers late, and one that is away not at all
_SQUEUE = ("JobArrayID", "State", "Reason", "NodeList", "StartTime", "TimeLeft", "restartcnt")
_SACCT = ("JobID", "State", "ExitCode", "NodeList", "Start")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """One job, or one task of an array, as SLURM sees it."""

    job_id: str
    """``17``, or ``17_3``."""
    state: str
    """SLURM's word: PENDING, RUNNING, TIMEOUT ..."""
    reason: str = ""
    """Why it waits."""
    nodes: str = ""
    """As SLURM writes lists: ``n[1-4]``."""
    start_time: float | None = None
    """Begin, or of a job that waits the expected one; seconds since 1970."""
    time_left: str = ""
    """Until its limit, as SLURM writes it."""
    restarts: int | None = None
    exit_code: str = ""
    """Code and signal of one that has ended, ``1:0``."""

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ALIVE

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmView:
    """The jobs that were asked for and are known, by id; and why not all could be asked about."""

    jobs: Mapping[str, JobState]
    problem: str = ""


def look_at_jobs(job_ids: Iterable[str]) -> SlurmView:
    """Asks once for all of them; jobs that SLURM has forgotten are absent."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return SlurmView(jobs={})
    if shutil.which("squeue") is None:
        return SlurmView(
            jobs={}, problem="squeue is not on the PATH here: what follows is from the event logs"
        )
    queue = ask_slurm(
        "squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}", _squeue_format()
    )
    problem = "" if queue.returncode == 0 or "Invalid job id" in queue.stderr else _words(queue)
    jobs = parse_squeue(queue.stdout)
    gone = [job_id for job_id in wanted if job_id not in jobs]
    if gone and not problem:
        jobs = {**jobs, **_from_accounting(gone)}
    return SlurmView(jobs={job_id: jobs[job_id] for job_id in wanted if job_id in jobs}, problem=problem)


def parse_squeue(text: str) -> dict[str, JobState]:
    """Jobs of ``squeue --array`` in our format."""
    jobs = {}
    for fields in _rows(text, len(_SQUEUE)):
        job_id, state, reason, nodes, start, left, restarts = fields
        jobs[job_id] = JobState(
            job_id=job_id,
            state=state,
            reason="" if reason == "None" else reason,
            nodes=nodes,
            start_time=_time(start),
            time_left=left,
            restarts=int(restarts) if restarts.isdigit() else None,
        )
    return jobs


def parse_sacct(text: str) -> dict[str, JobState]:
    """Jobs of ``sacct --parsable2 --allocations`` in our format; ``CANCELLED by 1000`` is CANCELLED."""
    jobs = {}
    for job_id, state, exit_code, nodes, start in _rows(text, len(_SACCT)):
        jobs[job_id] = JobState(
            job_id=job_id,
            state=state.split()[0],
            exit_code=exit_code,
            nodes="" if nodes == "None assigned" else nodes,
            start_time=_time(start),
        )
    return jobs


def ask_slurm(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's commands; a missing one, or one that does not answer, is a failed command with its reason."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not on the PATH")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_TIMEOUT_S:.0f} s")


def _from_accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Nothing where the cluster keeps no accounts."""
    if shutil.which("sacct") is None:
        return {}
    answer = ask_slurm(
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={','.join(job_ids)}",
        f"--format={','.join(_SACCT)}",
    )
    return parse_sacct(answer.stdout) if answer.returncode == 0 else {}


def _squeue_format() -> str:
    """The ``:|`` behind each name is what ends the field; without it squeue cuts them at 20 characters."""
    return "--Format=" + ",".join(f"{name}:|" for name in _SQUEUE)


def _rows(text: str, num_fields: int) -> Iterable[list[str]]:
    for line in text.splitlines():
        fields = [field.strip() for field in line.rstrip("|").split("|")]
        if fields[0]:
            yield (fields + [""] * num_fields)[:num_fields]


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # N/A, Unknown, None
        return None


def _words(answer: subprocess.CompletedProcess[str]) -> str:
    said = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
    return f"SLURM does not answer ({said}): what follows is from the event logs"
