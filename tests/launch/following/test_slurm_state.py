"""What squeue and sacct print, read; the outputs were recorded on SLURM 22.05.8."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from launch.following.slurm_state import look_at_jobs, parse_sacct, parse_squeue

SQUEUE = (
    "2_1|PENDING|JobArrayTaskLimit||N/A|1:00:00|0|\n"
    "4|PENDING|Dependency||N/A|1:00:00|0|\n"
    "5|PENDING|BeginTime||2026-11-22T21:01:50|1:00:00|1|\n"
    "1|RUNNING|None|n[1-2]|2026-11-22T20:59:44|59:59|0|\n"
    "2_0|RUNNING|None|n1|2026-11-22T20:59:44|59:59|0|\n"
    "7|FAILED|NonZeroExitCode|n3|2026-11-22T20:59:44|59:59|2|\n"
)
SACCT = (
    "1|COMPLETED|0:0|n[1-2]|2026-11-22T20:59:44\n"
    "3|CANCELLED by 0|0:0|None assigned|Unknown\n"
    "8|TIMEOUT|0:1|n1|2026-11-22T20:59:44\n"
    "9_2|OUT_OF_MEMORY|0:125|n4|2026-11-22T20:59:44\n"
)


def test_squeue_gives_state_reason_nodes_and_times() -> None:
    jobs = parse_squeue(SQUEUE)
    assert list(jobs) == ["2_1", "4", "5", "1", "2_0", "7"]
    assert (jobs["1"].state, jobs["1"].reason, jobs["1"].nodes) == ("RUNNING", "", "n[1-2]")
    assert (jobs["1"].time_left, jobs["1"].restarts) == ("59:59", 0)
    assert jobs["1"].start_time == datetime(2026, 11, 22, 20, 59, 44).timestamp()
    assert (jobs["4"].reason, jobs["4"].nodes, jobs["4"].start_time) == ("Dependency", "", None)
    assert (jobs["5"].reason, jobs["5"].restarts) == ("BeginTime", 1)


def test_jobs_that_wait_or_run_are_alive_and_others_are_not() -> None:
    jobs = parse_squeue(SQUEUE)
    assert [job_id for job_id, job in jobs.items() if job.is_alive] == ["2_1", "4", "5", "1", "2_0"]
    assert [job_id for job_id, job in jobs.items() if job.is_waiting] == ["2_1", "4", "5"]


def test_sacct_gives_states_without_the_user_who_cancelled() -> None:
    jobs = parse_sacct(SACCT)
    assert {job_id: job.state for job_id, job in jobs.items()} == {
        "1": "COMPLETED",
        "3": "CANCELLED",
        "8": "TIMEOUT",
        "9_2": "OUT_OF_MEMORY",
    }
    assert (jobs["3"].nodes, jobs["3"].start_time) == ("", None)
    assert jobs["9_2"].exit_code == "0:125"
    assert not any(job.is_alive for job in jobs.values())


def test_no_output_is_no_job() -> None:
    assert parse_squeue("") == parse_sacct("\n") == {}


def test_without_squeue_the_reason_is_given_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    view = look_at_jobs(["17"])
    assert view.jobs == {}
    assert view.problem == "squeue is not on the PATH here: what follows is from the event logs"


def test_a_cluster_that_cannot_be_reached_is_told_in_slurms_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = tmp_path / "squeue"
    refusing.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    view = look_at_jobs(["17"])
    assert view.jobs == {}
    assert "Unable to contact slurm controller" in view.problem


def test_nothing_submitted_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_at_jobs([]).problem == ""
