"""`mirada cancel`: runs save with all their ranks and end for good; what waits in the queue leaves it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.base import ConfigError
from launch.following.run_state import CANCELLED, RunState, RunWatch
from launch.following.slurm_state import ask_slurm
from launch.submission.record import launch_folder

_SAVE = signal.SIGUSR2
"""What SLURM sends before a time limit, too: all ranks agree on a step, save together and stop."""
_POLL_S = 1.0
_GRACE_S = 120.0
"""So long a run that was not submitted may take to save; a submitted one has its cluster file's grace_s."""
_END_S = 60.0
"""So long SLURM may take to end the job behind that: KillWait, epilog, accounting."""


def cancel(folders: Sequence[Path], *, save: bool) -> int:
    """Asks all runs, then waits until each has ended; with `save` false SLURM ends them at once. Returns the exit code.

    Raises ConfigError before anything is asked when one of them cannot be stopped from here.
    """
    watch = RunWatch(folders)
    states = watch.look()
    problems = [problem for state in states if (problem := _obstacle(state, watch.problem))]
    if problems:
        raise ConfigError("\n".join(problems))
    asked = [state for state in states if not state.is_final]
    for state in states:
        if state.is_final:
            _say(state.folder, f"is {state.state} already")
    for state in asked:
        _ask_to_stop(state, save=save)
    return _wait_for_ends(asked)


def _obstacle(state: RunState, problem: str) -> str:
    """Why this run cannot be stopped from here; empty if it can."""
    if state.is_final or state.process is not None or (state.job is not None and state.job.is_alive):
        return ""
    if state.job_id:
        return f"{state.folder}: job {state.job_id} cannot be reached: {problem or 'SLURM does not know it any more'}"
    return (
        f"{state.folder}: it is {state.state}, and none of its processes is on this machine: run this on "
        f"{state.progress.host or 'the host that trains it'}"
    )


def _ask_to_stop(state: RunState, *, save: bool) -> None:
    job = state.job
    if job is None or not job.is_alive:
        if state.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since it was looked at
                os.kill(state.process, _SAVE if save else signal.SIGKILL)
        return
    (
        launch_folder(state.folder) / CANCELLED
    ).touch()  # first: the job looks for it when its ranks have stopped
    if job.is_waiting or not save:
        _tell_slurm(job.job_id)
    else:
        _tell_slurm(f"--signal={_SAVE.name.removeprefix('SIG')}", job.job_id)


def _wait_for_ends(asked: Sequence[RunState]) -> int:
    """Follows the runs until each has ended; one that does not save within its time is ended by SLURM."""
    start, code = time.monotonic(), 0
    watch = RunWatch([state.folder for state in asked])
    grace = {state.folder: _grace_s(state) for state in asked}
    open_runs = set(grace)
    while open_runs:
        waited_s = time.monotonic() - start
        for state in watch.look():
            if state.folder not in open_runs:
                continue
            if _has_ended(state):
                open_runs.remove(state.folder)
                _say(state.folder, f"{state.state}; {state.why}" if state.why else state.state)
            elif waited_s > grace[state.folder] + _END_S:
                open_runs.remove(state.folder)
                _say(state.folder, f"is still {state.state} after {waited_s:.0f} s")
                code = 1
            elif waited_s > grace[state.folder] and state.job is not None and state.job.is_alive:
                _say(state.folder, f"did not save within {grace[state.folder]:.0f} s: SLURM ends it")
                _tell_slurm(state.job.job_id)
                grace[state.folder] = waited_s + _END_S
        if open_runs:
            time.sleep(_POLL_S)
    return code


def _has_ended(state: RunState) -> bool:
    if state.job is not None:
        return not state.job.is_alive
    return state.is_final and state.process is None


def _grace_s(state: RunState) -> float:
    return float(state.submission.cluster.grace_s) if state.submission is not None else _GRACE_S


def _tell_slurm(*arguments: str) -> None:
    answer = ask_slurm("scancel", *arguments)
    if answer.returncode != 0 and "already completing or completed" not in answer.stderr:
        raise ConfigError(f"scancel {' '.join(arguments)}: {answer.stderr.strip() or answer.returncode}")


def _say(folder: Path, text: str) -> None:
    sys.stdout.write(f"{folder}: {text}\n")
    sys.stdout.flush()
