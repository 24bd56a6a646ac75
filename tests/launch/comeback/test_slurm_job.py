"""What a job learns of itself from a real SLURM, and how it sends itself back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.comeback import slurm_job
from launch.comeback.slurm_job import expand, look_at_job, send_back, usable_nodes
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

REASON = missing_for_slurm()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(num_nodes=4, extra="PartitionName=small Nodes=n1,n2 State=UP") as running:
        yield running


@pytest.fixture(autouse=True)
def as_within_a_job(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands speak to this cluster; a refusal is not asked for again after 5 s."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setattr(slurm_job, "_PAUSE_S", 0.1)


def submit(cluster: SlurmCluster, *options: str, lines: str = "sleep 600") -> str:
    job_id = cluster.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={lines}").strip()
    cluster.wait_for_state(job_id, "RUNNING")
    return job_id


def test_lists_of_nodes_are_read_as_slurm_writes_them(cluster: SlurmCluster) -> None:
    assert expand("n[1-2],n4") == ("n1", "n2", "n4")
    assert expand("(null)") == expand("") == ()


def test_a_job_that_runs_and_sends_itself_back_is_requeued_without_the_nodes_it_names(
    cluster: SlurmCluster,
) -> None:
    before = int(time.time())
    job_id = submit(cluster, "--requeue", "--exclude=n[3-4]")
    job = look_at_job(job_id, restart=0)
    assert (job.says, job.excluded) == ("running", ("n3", "n4"))
    assert before <= job.start_time <= time.time()
    former = cluster.job(job_id)["NodeList"]
    assert send_back(job, exclude=[former]) == ""
    assert look_at_job(job_id, restart=0).says == "requeueing"
    cluster.wait_for_requeue(job_id, restarts=1)
    cluster.hurry(job_id)
    node = cluster.wait_for_state(job_id, "RUNNING")["NodeList"]
    assert {node, former} == {"n1", "n2"}
    assert look_at_job(job_id, restart=1).says == "running"
    cluster.run("scancel", job_id)


def test_a_job_that_slurm_does_not_requeue_has_its_words(cluster: SlurmCluster) -> None:
    job_id = submit(cluster, "--no-requeue")
    refusal = send_back(look_at_job(job_id, restart=0), exclude=[])
    assert "Requested operation is presently disabled" in refusal
    cluster.run("scancel", job_id)


def test_a_cancelled_job_is_ending_while_its_script_is_still_there(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    job_id = submit(cluster, lines=f"trap : TERM; touch {ready}; while :; do sleep 0.1; done")
    cluster.wait_until(ready.exists, what="the trap of the script")
    cluster.run("scancel", job_id)
    cluster.wait_for_state(job_id, "COMPLETING", "CANCELLED")
    assert look_at_job(job_id, restart=0).says == "ending"
    cluster.wait_for_state(job_id, "CANCELLED")


@pytest.mark.slow  # SLURM looks at limits every 30 s
def test_a_job_over_its_limit_can_still_send_itself_back(cluster: SlurmCluster, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    job_id = submit(cluster, "--requeue", lines=f"trap : TERM; touch {ready}; while :; do sleep 0.1; done")
    cluster.wait_until(ready.exists, what="the trap of the script")
    cluster.run("scontrol", "update", f"jobid={job_id}", "EndTime=now+1")
    cluster.wait_until(
        lambda: look_at_job(job_id, restart=0).says != "running", what="the limit", timeout_s=180
    )
    job = look_at_job(job_id, restart=0)
    assert job.says == "time limit"
    assert send_back(job, exclude=[]) == ""
    cluster.wait_for_requeue(job_id, restarts=1)
    cluster.run("scancel", job_id)


def test_a_job_of_which_slurm_knows_nothing_is_taken_for_one_that_runs(cluster: SlurmCluster) -> None:
    assert look_at_job("4711", restart=0).says == "running"


def test_usable_are_nodes_of_the_partition_that_are_idle_or_busy_and_not_those_that_are_drained(
    cluster: SlurmCluster,
) -> None:
    job_id = submit(cluster, "--nodelist=n1", "--exclusive")
    cluster.run("scontrol", "update", "nodename=n2,n3", "state=drain", "reason=test")
    try:
        assert usable_nodes(None) == {"n1", "n4"}
        assert usable_nodes("small") == {"n1"}
    finally:
        cluster.run("scontrol", "update", "nodename=n2,n3", "state=resume")
        cluster.run("scancel", job_id)


def test_a_controller_that_is_away_for_a_moment_is_asked_again(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(cluster)
    away = tmp_path / "scontrol"
    real = cluster.run("bash", "-c", "command -v scontrol").strip()
    away.write_text(
        f'#!/bin/sh\nif mkdir {tmp_path}/asked 2>/dev/null; then echo "Unable to contact" >&2; exit 1; fi\n'
        f'exec {real} "$@"\n'
    )
    away.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert look_at_job(job_id, restart=0).start_time > 0
    assert (tmp_path / "asked").is_dir()
    cluster.run("scancel", job_id)
