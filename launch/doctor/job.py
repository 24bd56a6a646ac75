"""The examination's job: submitted as a run is, from a snapshot and by the same script, and waited for."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.cluster import ClusterConfig, RequeueConfig
from launch.following.logs import last_lines, log_files
from launch.following.slurm_state import JobState, ask_slurm, look_at_jobs
from launch.submission.folder import make_private_folder
from launch.submission.job import Job
from launch.submission.record import Submission, with_jobs, write_submission
from launch.submission.slurm import submit
from launch.submission.snapshot import read_source, take_snapshot

_LIMIT = "15 min"
"""More than the checks take on hundreds of nodes; short jobs start sooner."""
_POLL_S = 1.0
_TAIL_LINES = 20


def run_job(cluster: ClusterConfig, command: Sequence[str], *, out: Path, wait_s: float) -> str:
    """Submits, waits until the job has ended, and returns what went wrong; raises ConfigError where SLURM refuses.

    A job that takes longer than `wait_s`, and one whose waiting is interrupted, is cancelled.
    """
    submission = _submit(cluster, command, out)
    job_id = submission.job_ids[0]
    try:
        return _wait(job_id, out, deadline=time.monotonic() + wait_s)
    except KeyboardInterrupt:
        ask_slurm("scancel", job_id)
        raise


def _submit(cluster: ClusterConfig, command: Sequence[str], out: Path) -> Submission:
    short = cluster.model_copy(update={"time": _LIMIT, "grace_s": 30, "requeue": RequeueConfig(budget=0)})
    folder = make_private_folder(out)
    snapshot = take_snapshot(folder, {}, digest="doctor", source=read_source())
    submission = Submission(
        program="doctor",
        command=tuple(command),
        recipe="",
        overrides=(),
        cluster=short,
        snapshot=snapshot.path,
        commit=snapshot.commit,
        config_hash="doctor",
        run_folder=out,
        workdir=Path.cwd(),
        created=time.time(),
        user=getpass.getuser(),
    )
    write_submission(submission)
    job_ids = submit([Job(run_folder=out)], short, folder, snapshot=snapshot.path, name="mirada-doctor")
    submission = with_jobs(submission, tuple(job_ids))
    write_submission(submission)
    return submission


def _wait(job_id: str, out: Path, *, deadline: float) -> str:
    """Says what the job is doing whenever that changes; returns its problem, or nothing."""
    said = ""
    while True:
        view = look_at_jobs([job_id])
        job = view.jobs.get(job_id)
        if not view.problem and (job is None or not job.is_alive):
            return _problem(job_id, job, out)
        now = view.problem or (
            f"job {job_id}: {job.state} {job.reason or job.nodes}" if job is not None else ""
        )
        if now != said:
            said = now
            sys.stderr.write(f"{said}\n")
        if time.monotonic() > deadline:
            ask_slurm("scancel", job_id)
            return f"job {job_id} was still {job.state if job else 'unknown'} when the wait was over, and is cancelled"
        time.sleep(_POLL_S)


def _problem(job_id: str, job: JobState | None, out: Path) -> str:
    """Nothing for a job that ended well; else the end of its log goes to stderr."""
    if job is None or job.state == "COMPLETED":
        return ""
    for path in log_files(out, [0]):
        sys.stderr.write(f"==> {path} <==\n{last_lines(path, _TAIL_LINES)[0]}")
    return f"job {job_id} ended as {job.state}"
