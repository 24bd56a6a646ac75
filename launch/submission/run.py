"""Submitting one run: folder, snapshot, record, sbatch; and what its user is told."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from configs.base import ConfigError
from launch.submission.job import Job
from launch.submission.prepare import prepare
from launch.submission.record import (
    Submission,
    forget_submission,
    launch_folder,
    read_submission,
    with_jobs,
    write_submission,
)
from launch.submission.slurm import script_text, submit
from launch.submission.snapshot import read_source
from launch.submission.validate import Checked


def submit_run(checked: Checked) -> Submission:
    """Submits a run; where SLURM refuses, the folder's record is as it was before."""
    former = None if checked.request.fresh else read_submission(checked.request.out)
    submission = prepare(checked)
    return submit_recorded(submission, former, name=submission.run_folder.name)


def submit_recorded(
    submission: Submission, former: Submission | None, *, name: str, dependency: str | None = None
) -> Submission:
    """Submits what a record describes as one job, and notes its id; if SLURM refuses, the `former` record is back."""
    try:
        job_ids = submit(
            [Job(run_folder=submission.run_folder)],
            submission.cluster,
            submission.folder,
            snapshot=submission.snapshot,
            name=name,
            dependency=dependency,
        )
    except ConfigError:
        forget_submission(submission.run_folder, former)
        raise
    submission = with_jobs(submission, tuple(job_ids))
    write_submission(submission)
    return submission


def submitted_text(submission: Submission, notes: Sequence[str]) -> str:
    """What was done, and how to follow it."""
    cluster, folder = submission.cluster, shlex.quote(str(submission.run_folder))
    job = submission.job_ids[0]
    lines = {
        "submitted": f"job {job}: {submission.program} on {cluster.nodes_text} nodes of {cluster.ranks_per_node} ranks",
        "run folder": str(submission.run_folder),
        "snapshot": f"{submission.snapshot.name} (commit {submission.commit})",
        "log": str(submission.folder / f"{job}_0_log.out"),
        "follow": f"mirada status {folder}, mirada logs {folder}, mirada cancel {folder}",
    }
    return "".join(
        f"{name:<12}{text}\n" for name, text in [*lines.items(), *(("note", note) for note in notes)]
    )


def dry_text(checked: Checked) -> str:
    """The plan and the script that would go to sbatch; writes nothing."""
    request, source = checked.request, read_source()
    cluster, folder = request.cluster, launch_folder(request.out)
    snapshot = folder / f"snapshot-{source.commit}-{request.loaded.digest}"
    script = script_text(
        [Job(run_folder=request.out, node_counts=checked.node_counts)],
        cluster,
        folder,
        snapshot=snapshot,
        name=request.out.name,
    )
    ranks = [count * cluster.ranks_per_node for count in checked.node_counts]
    batch = request.loaded.config.train.global_batch
    shares = ", ".join(f"{batch // count} on {count} ranks" for count in ranks)
    lines = {
        "run folder": str(request.out),
        "snapshot": f"{snapshot.name}: {len(source.files)} files"
        + (f", with {len(source.diff):,} bytes of uncommitted changes" if source.diff else ""),
        "batch": f"{batch} images a step: {shares} each",
        "limit": f"{cluster.time} a start, up to {cluster.requeue.budget} restarts; "
        f"asked to save {cluster.grace_s} s before",
    }
    told = "".join(
        f"{name:<12}{text}\n" for name, text in [*lines.items(), *(("note", n) for n in checked.notes)]
    )
    return f"{told}\n{script}"
