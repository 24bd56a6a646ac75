"""come_back: the end of a batch script: reads how a start ended, decides, and does it.

attempts/JOB.RESTART/rank_*.json + scontrol + events.jsonl -> decide -> verdict.json -> scontrol requeue, exclude
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from configs.exit_code import INTERRUPTED, USAGE
from launch.comeback.attempts import read_ends
from launch.comeback.decision import Situation, decide
from launch.comeback.slurm_job import SlurmJob, expand, look_at_job, send_back, usable_nodes
from launch.comeback.verdict import Verdict, read_history, write_verdict
from launch.following.event_tail import LOG_NAME, EventTail
from launch.following.run_state import CANCELLED
from launch.programs import program_command, program_environment
from launch.submission.record import Submission, attempt_folder
from launch.supervise import STOPPED

_SEND_S = 30.0
"""So long a tracking server may be away before the end of the job no longer waits for it."""


def come_back(submission: Submission, *, job_id: str, restart: int) -> int:
    """Decides what becomes of the job and does it; returns the exit code of the batch script.

    0 only when the run is finished, so that jobs that depend on this one wait, or never start.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a requeue ends this script, and must not do so half-way
    job = look_at_job(job_id, restart=restart)
    situation = _situation(submission, job, restart=restart)
    verdict = decide(situation, submission.cluster.requeue, now=time.time())
    if verdict.exclude:
        verdict = replace(verdict, exclude=_affordable(verdict.exclude, job, submission))
    write_verdict(submission.run_folder, verdict, job_id=job_id, restart=restart)
    _say(f"start {restart + 1} of job {job_id}: {verdict}")
    if verdict.action == "requeue":
        refusal = send_back(job, exclude=verdict.exclude)
        if refusal:
            reason = (
                f"SLURM did not requeue ({refusal}): submit it again with mirada requeue; {verdict.reason}"
            )
            verdict = replace(verdict, action="give_up", reason=reason)
            write_verdict(submission.run_folder, verdict, job_id=job_id, restart=restart)
            _say(str(verdict))
    if verdict.action in ("finished", "give_up", "stop"):
        _send_the_rest(submission)
    return _exit_code(verdict)


def _situation(submission: Submission, job: SlurmJob, *, restart: int) -> Situation:
    """What is known about this start."""
    folder, ranks_per_node = submission.run_folder, submission.cluster.ranks_per_node
    ends = read_ends(attempt_folder(folder, job.job_id, restart))
    num_ranks = ends[0].num_ranks if ends else int(os.environ.get("SLURM_NTASKS", ranks_per_node))
    nodes = expand(os.environ.get("SLURM_JOB_NODELIST", ""))
    progress = EventTail(folder).read()
    # A start that ended before it wrote anything must not be told by the words of the one before.
    has_failed = progress.phase == "failed" and (progress.event_time or 0.0) >= job.start_time
    return Situation(
        ends=ends,
        num_ranks=num_ranks,
        nodes=nodes[: num_ranks // ranks_per_node],
        restart=restart,
        slurm=job.says,
        is_cancelled=(submission.folder / CANCELLED).exists(),
        step=progress.step,
        saved_step=progress.saved_step,
        error=progress.why if has_failed else "",
        history=read_history(folder, job_id=job.job_id, before=restart),
    )


def _affordable(suspects: tuple[str, ...], job: SlurmJob, submission: Submission) -> tuple[str, ...]:
    """The suspects, unless too few nodes would be left for the job to start on."""
    cluster = submission.cluster
    left = usable_nodes(cluster.partition) - {*job.excluded, *suspects}
    if len(left) >= cluster.min_nodes:
        return suspects
    _say(f"not leaving out {', '.join(suspects)}: fewer than {cluster.min_nodes} nodes would remain")
    return ()


def _send_the_rest(submission: Submission) -> None:
    """Lets tracking have the last events: what followed the run was within the step, and ended with it.

    After any other start the next one does this. Where no server can be reached, `mirada sync` sends them.
    """
    if not (submission.run_folder / LOG_NAME).is_file():
        return
    arguments = [str(submission.run_folder), "--follow", "--grace", f"{_SEND_S:g}"]
    try:
        subprocess.run(
            program_command("engine.tracking.command", arguments),
            env=program_environment(os.environ),
            stdin=subprocess.DEVNULL,
            timeout=2 * _SEND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _say("tracking takes too long: send the rest with mirada sync")


def _exit_code(verdict: Verdict) -> int:
    match verdict.action:
        case "finished":
            return 0
        case "give_up":
            is_mistake = verdict.failure is not None and verdict.failure.code == USAGE
            return USAGE if is_mistake else 1
        case "stop":
            return INTERRUPTED
        case _:
            return STOPPED


def _say(text: str) -> None:
    sys.stdout.write(f"mirada: {text}\n")
    sys.stdout.flush()
