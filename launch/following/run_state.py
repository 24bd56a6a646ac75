"""RunState: how a run stands, from three witnesses: SLURM, its event log, and the notes beside its submission."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.comeback.verdict import read_gave_up, read_history
from launch.following.event_tail import EventTail, Progress
from launch.following.slurm_state import JobState, SlurmView, look_at_jobs
from launch.following.training_lock import training_process
from launch.submission.record import Submission, launch_folder, read_submission

FINAL = frozenset(("finished", "failed", "cancelled", "gave up", "stopped", "vanished"))
"""States that change only when somebody submits or starts the run again."""
CANCELLED = "cancelled"
"""Name of the file in the submission's folder that tells a job not to come back."""

_GAVE_UP = "gave_up.json"
_SILENT_S = 600.0
"""A log on another host that did not grow for so long belongs to no living run: the host is sampled every 10 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What was noted beside the submission."""

    cancelled: bool = False
    finished: bool = False
    """The job's last start ended well; all that is known of programs that write no event log."""
    gave_up: str = ""
    """Why the job no longer comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """One row of the status."""

    folder: Path
    state: str
    """waiting, requeued, starting, running, stopping, finished, failed, cancelled, gave up, stopped, vanished,
    silent or unknown."""
    why: str
    progress: Progress
    job: JobState | None
    submission: Submission | None
    process: int | None
    """Of rank 0, where it runs on this machine."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in FINAL

    @property
    def restarts(self) -> int:
        """Starts after the first: by the log, and by SLURM where a start came to nothing."""
        by_slurm = 0 if self.job is None or self.job.restarts is None else self.job.restarts
        return max(self.progress.num_starts - 1, by_slurm, 0)

    @property
    def job_id(self) -> str:
        """SLURM's, or empty."""
        return newest_job(self.submission)


class RunWatch:
    """The same runs looked at again and again: logs are read on, and SLURM is asked once for all of them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._tails = {folder: EventTail(folder) for folder in folders}
        self.problem = ""
        """Why SLURM could not be asked, at the last look."""

    def look(self) -> list[RunState]:
        """How the runs stand now."""
        submissions = {folder: read_submission(folder) for folder in self._tails}
        view = look_at_jobs(filter(None, map(newest_job, submissions.values())))
        self.problem = view.problem
        return [_run_state(folder, tail, submissions[folder], view) for folder, tail in self._tails.items()]


def newest_job(submission: Submission | None) -> str:
    """The job that runs, or ran last; empty where nothing was submitted to SLURM."""
    return submission.job_ids[-1] if submission is not None and submission.job_ids else ""


def judge(
    progress: Progress, job: JobState | None, notes: Notes, *, process: int | None, is_here: bool, now: float
) -> tuple[str, str]:
    """State and reason of a run. A job that SLURM still holds decides; else what was written down last does."""
    if job is not None and job.is_alive and progress.phase != "finished":
        return _judge_alive(progress, job, notes, now)
    if progress.phase == "finished":
        return "finished", "" if progress.is_released else "without a release"
    if progress.phase == "none" and notes.finished:
        return "finished", ""
    if notes.gave_up:
        return "gave up", notes.gave_up
    if notes.cancelled:
        return "cancelled", _after_stop(progress)
    if job is not None:
        return _judge_ended(progress, job)
    return _judge_by_log(progress, process=process, is_here=is_here, now=now)


def read_notes(run_folder: Path, job_id: str = "") -> Notes:
    """What stands beside the submission and its newest job; nothing where nothing was submitted."""
    gave_up = read_gave_up(run_folder)
    return Notes(
        cancelled=(launch_folder(run_folder) / CANCELLED).exists(),
        finished=_ended_well(run_folder, job_id),
        gave_up="" if gave_up is None else gave_up.reason,
    )


def forget_notes(run_folder: Path) -> None:
    """Lets a run that was cancelled, or gave up, begin again."""
    for name in (CANCELLED, _GAVE_UP):
        (launch_folder(run_folder) / name).unlink(missing_ok=True)


def _ended_well(run_folder: Path, job_id: str) -> bool:
    starts = (launch_folder(run_folder) / "attempts").glob(f"{job_id}.*")
    newest = max((int(folder.suffix[1:]) for folder in starts), default=-1)
    history = read_history(run_folder, job_id=job_id, before=newest + 1)
    return bool(history) and history[-1].action == "finished"


def _run_state(folder: Path, tail: EventTail, submission: Submission | None, view: SlurmView) -> RunState:
    job_id = newest_job(submission)
    job, progress, process = view.jobs.get(job_id), tail.read(), training_process(folder)
    if process == 0 and progress.phase == "running":  # it may have said its last word between the two looks
        progress = tail.read()
    is_here = progress.host in ("", socket.gethostname())
    notes = read_notes(folder, job_id)
    state, why = judge(progress, job, notes, process=process, is_here=is_here, now=time.time())
    return RunState(
        folder=folder,
        state=state,
        why=why,
        progress=progress,
        job=job,
        submission=submission,
        process=process if process and is_here else None,
    )


def _judge_alive(progress: Progress, job: JobState, notes: Notes, now: float) -> tuple[str, str]:
    if job.is_waiting:
        has_run = progress.num_starts > 0 or bool(job.restarts)
        return "requeued" if has_run else "waiting", _waiting_for(job, now)
    if notes.cancelled or job.state == "COMPLETING":
        return "stopping", "asked to save and stop" if notes.cancelled else ""
    began = job.start_time or 0.0
    if progress.start_time is None or progress.start_time < began:
        return "starting", ""
    if progress.phase == "running":
        return "running", ""
    return "stopping", f"{progress.phase}: {progress.why}"


def _judge_ended(progress: Progress, job: JobState) -> tuple[str, str]:
    """The job is over and the run is not finished."""
    if job.state == "COMPLETED" and progress.phase == "none":
        return "finished", ""
    if job.state.startswith("CANCELLED"):
        return "cancelled", _after_stop(progress)
    if progress.phase == "failed":
        return "failed", progress.why
    if progress.phase == "stopped":
        return "stopped", _after_stop(progress)
    code = f" (exit code {job.exit_code})" if job.exit_code else ""
    return "failed", f"SLURM: {job.state}{code}"


def _judge_by_log(progress: Progress, *, process: int | None, is_here: bool, now: float) -> tuple[str, str]:
    """Without a word from SLURM."""
    if progress.phase == "none":
        return "unknown", "it has not begun, and SLURM does not know it"
    if progress.phase == "failed":
        return "failed", progress.why
    if progress.phase == "stopped":
        return "stopped", _after_stop(progress)
    if process:
        return "running", ""
    if process == 0 and is_here:
        return "vanished", "its process is gone and said nothing"
    silent_s = now - (progress.event_time or now)
    if silent_s > _SILENT_S:
        return "silent", f"no event for {silent_s / 60:.0f} min from {progress.host}"
    return "running", ""


def _after_stop(progress: Progress) -> str:
    if progress.step is None:
        return "before its first step"
    saved = progress.saved_step
    if saved is None:
        return f"at step {progress.step:,}, without a checkpoint"
    return f"saved after step {saved:,}" + (f", at step {progress.step:,}" if saved != progress.step else "")


_REASONS = {
    "Resources": "for free nodes",
    "Priority": "behind jobs of higher priority",
    "Dependency": "for the job before it",
    "BeginTime": "SLURM's pause before a requeue",
    "JobArrayTaskLimit": "for other tasks of its array",
    "JobHeldUser": "held by you: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "DependencyNeverSatisfied": "never: the job before it failed",
}
"""SLURM's words for why a job waits, in others; those that are missing speak for themselves."""


def _waiting_for(job: JobState, now: float) -> str:
    why = _REASONS.get(job.reason, job.reason)
    if job.start_time is None or job.start_time <= now:
        return why
    return f"{why}, starts in about {format_seconds(job.start_time - now)}"


def format_seconds(seconds: float) -> str:
    """``1:05``, ``2:03:04``, ``3 d 04:05``."""
    days, rest = divmod(round(seconds), 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest % 60:02d}" if hours else f"{minutes}:{rest % 60:02d}"


def all_final(states: Iterable[RunState]) -> bool:
    """Whether there is nothing to wait for."""
    return all(state.is_final for state in states)
