"""The job as slurmctld knows it, from within: what it says when the ranks have ended, and how it is sent back."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from launch.comeback.decision import SlurmSays
from launch.following.slurm_state import ask_slurm

_TRIES, _PAUSE_S = 5, 5.0
"""A controller that is away for a moment must not cost the run."""
_FIELD = re.compile(r"(?:^|\s)([A-Za-z]+)=(\S*)")
_RUNNING = frozenset({"RUNNING", "SIGNALING", "CONFIGURING", "RESIZING", "SUSPENDED", "STOPPED"})
"""SIGNALING while slurmctld passes on a signal, as at the time limit."""
_UNUSABLE = re.compile(r"down|drain|fail|maint|reboot|power|unknown|future|\*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """One job."""

    job_id: str
    says: SlurmSays
    excluded: tuple[str, ...] = ()
    """Nodes it must not run on."""
    start_time: float = 0.0
    """Of this start, in seconds since 1970; 0 when SLURM does not say."""


def look_at_job(job_id: str, *, restart: int) -> SlurmJob:
    """Asks SLURM; a job of which nothing can be learned is taken for one that runs."""
    answer = _ask_again("scontrol", "--oneliner", "show", "job", job_id)
    known = dict(_FIELD.findall(answer.stdout))
    return SlurmJob(
        job_id=job_id,
        says=_read_state(known, restart),
        excluded=expand(known.get("ExcNodeList", "")),
        start_time=_start_time(known),
    )


def expand(nodes: str) -> tuple[str, ...]:
    """Names out of SLURM's ``n[1-3],n7``, in their order; none out of its ``(null)``."""
    if nodes in ("", "(null)"):
        return ()
    return tuple(ask_slurm("scontrol", "show", "hostnames", nodes).stdout.split())


def usable_nodes(partition: str | None) -> set[str]:
    """Nodes of a partition (or of all) that run jobs, now or when others have ended."""
    only = [f"--partition={partition}"] if partition else []
    lines = ask_slurm("sinfo", "--noheader", "--Node", "--format=%N %T", *only).stdout.splitlines()
    return {name for name, state in map(str.split, lines) if not _UNUSABLE.search(state)}


def send_back(job: SlurmJob, *, exclude: Sequence[str]) -> str:
    """Requeues the job, without these nodes; returns SLURM's words when it refuses.

    NOTE: SLURM lets a job that waits lose nodes, one that runs not; so the requeue, which ends this script too, comes
    first. Whoever calls this ignores SIGTERM.
    """
    answer = _ask_again("scontrol", "requeue", job.job_id)
    if answer.returncode != 0:
        return _words(answer)
    if exclude:
        names = ",".join(dict.fromkeys([*job.excluded, *exclude]))
        answer = _ask_again("scontrol", "update", f"jobid={job.job_id}", f"excnodelist={names}")
        if answer.returncode != 0:
            sys.stderr.write(f"mirada: the next start may use {names} again: {_words(answer)}\n")
    return ""


def _ask_again(*command: str) -> subprocess.CompletedProcess[str]:
    """The answer, or the last refusal."""
    for _ in range(_TRIES - 1):
        answer = ask_slurm(*command)
        if answer.returncode == 0:
            return answer
        time.sleep(_PAUSE_S)
    return ask_slurm(*command)


def _read_state(known: Mapping[str, str], restart: int) -> SlurmSays:
    """NOTE: a job that SLURM requeues is COMPLETING, with one restart more, while its script is still running."""
    state = known.get("JobState", "RUNNING")
    if int(known.get("Restarts", restart)) > restart or state == "PENDING":
        return "requeueing"
    if known.get("Reason") == "TimeLimit" or state == "TIMEOUT":
        return "time limit"
    return "running" if state in _RUNNING else "ending"


def _start_time(known: Mapping[str, str]) -> float:
    try:
        return datetime.fromisoformat(known.get("StartTime", "")).timestamp()
    except ValueError:  # Unknown
        return 0.0


def _words(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
