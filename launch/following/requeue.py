"""`mirada requeue`: a run that trains saves and comes back; one that ended is submitted again as it was."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.base import ConfigError
from launch.following.run_state import RunState, RunWatch, forget_notes
from launch.following.slurm_state import ask_slurm
from launch.submission.job import Job
from launch.submission.record import Submission, with_jobs, write_submission
from launch.submission.slurm import submit


def requeue(folders: Sequence[Path]) -> None:
    """Sends each run back to the queue with the code and config of its submission.

    Raises ConfigError before anything is done when one of them cannot come back.
    """
    watch = RunWatch(folders)
    states = watch.look()
    problems = [problem for state in states if (problem := _obstacle(state, watch.problem))]
    if problems:
        raise ConfigError("\n".join(problems))
    for state in states:
        sys.stdout.write(f"{state.folder}: {_send_back(state)}\n")


def _obstacle(state: RunState, problem: str) -> str:
    if state.submission is None or not state.job_id:
        again = state.progress.command
        return (
            f"{state.folder}: it was not submitted to SLURM; run it again: {again or 'with the same command'}"
        )
    if problem:
        return f"{state.folder}: {problem}"
    if state.state == "finished":
        return f"{state.folder}: it is finished; --fresh with mirada launch starts it anew"
    if state.state == "stopping":
        return f"{state.folder}: it is stopping; try again when it has ended"
    return ""


def _send_back(state: RunState) -> str:
    """Does it, and says what was done."""
    job, submission = state.job, state.submission
    if job is not None and job.is_waiting:
        if "Held" not in job.reason and job.state != "REQUEUE_HOLD":
            return f"job {job.job_id} is in the queue already: {state.why}"
        _tell_slurm("scontrol", "release", job.job_id)
        return f"job {job.job_id} is no longer held"
    if job is not None and job.is_alive:
        _tell_slurm("scancel", "--signal=USR2", job.job_id)
        return f"job {job.job_id} was asked to save with all its ranks and to come back"
    if submission is None:
        raise ConfigError(f"{state.folder}: the record of its submission is gone")
    return f"submitted again, as job {_submit_again(submission)}"


def _submit_again(submission: Submission) -> str:
    """The same snapshot in a new job: SLURM forgets jobs that ended minutes after they did."""
    forget_notes(submission.run_folder)
    job_ids = submit(
        [Job(run_folder=submission.run_folder)],
        submission.cluster,
        submission.folder,
        snapshot=submission.snapshot,
        name=submission.run_folder.name,
    )
    write_submission(with_jobs(submission, tuple(job_ids)))
    return job_ids[-1]


def _tell_slurm(*command: str) -> None:
    answer = ask_slurm(*command)
    if answer.returncode != 0:
        raise ConfigError(f"{' '.join(command)}: {answer.stderr.strip() or answer.returncode}")
