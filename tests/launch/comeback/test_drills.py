"""Runs that are interrupted in every way a cluster knows, on a real SLURM, and end as if nothing had happened.

The drills go on side by side, in threads of their own on nodes of their own; each test waits for its drill.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from launch.comeback.verdict import read_gave_up
from tests.support.drill import NUM_STEPS, Drill, launch_drill
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

REASON = missing_for_slurm()
pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

CONF = "KillWait=120\nPartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=60 State=UP"
ON_N1 = "n2,n3,n4"
ON_N2 = "n1,n3,n4"


def undisturbed(cluster: SlurmCluster, folder: Path) -> Drill:
    """What the others are compared with."""
    drill = launch_drill(cluster, folder, exclude=ON_N1)
    drill.finish()
    return drill


def over_its_limit(cluster: SlurmCluster, folder: Path) -> Drill:
    """The limit is moved near: SLURM looks at limits every 30 s, so it asks at once, 90 s or more before the end."""
    drill = launch_drill(cluster, folder, exclude=ON_N1, grace_s=90)
    moved = ("scontrol", "update", f"jobid={drill.job_id}", "EndTime=now+120")
    drill.interrupt(lambda: cluster.run(*moved), by=signal.SIGUSR2)
    drill.wait_for_requeue(1)
    cluster.run(
        "scontrol", "update", f"jobid={drill.job_id}", "TimeLimit=20"
    )  # the moved one would hold again
    drill.start_again()
    drill.finish()
    return drill


def requeued_and_preempted(cluster: SlurmCluster, folder: Path) -> Drill:
    """First by an administrator, then by a job of a partition of higher priority that wants the whole node."""
    urgent = (
        "sbatch",
        "--partition=urgent",
        "--nodelist=n2",
        "--exclusive",
        "--wrap=true",
        "--output=/dev/null",
    )
    drill = launch_drill(cluster, folder, f"tracking.uri=sqlite:///{folder}/mlflow.db", exclude=ON_N2)
    drill.interrupt(lambda: cluster.run("scontrol", "requeue", drill.job_id), by=signal.SIGTERM)
    drill.wait_for_requeue(1)
    drill.start_again()
    drill.interrupt(lambda: cluster.run(*urgent), by=signal.SIGTERM, after_step=12, start=1)
    drill.wait_for_requeue(2)
    drill.start_again()
    drill.finish()
    return drill


def losing_a_node_and_a_rank(cluster: SlurmCluster, folder: Path) -> Drill:
    """The node of rank 0 loses power: SLURM requeues. Then a rank is killed: the job does, and leaves its node out."""
    drill = launch_drill(cluster, folder, exclude="n1,n2", nodes=2, tasks_per_node=1)
    drill.wait_for_step(5)
    cluster.kill_node("n3")
    drill.wait_for_requeue(1)
    cluster.run("scontrol", "update", f"jobid={drill.job_id}", "ExcNodeList=n2")
    drill.start_again()
    drill.wait_for_step(3, start=1)
    ranks = drill.freeze()
    assert drill.nodes() == ["n1", "n4"]
    cluster.revive_node("n3")
    os.kill(ranks[1], signal.SIGKILL)
    drill.thaw()
    drill.wait_for_requeue(2)
    drill.start_again()
    drill.finish()
    return drill


def cancelled(cluster: SlurmCluster, folder: Path) -> Drill:
    """Without `mirada cancel`."""
    drill = launch_drill(cluster, folder, exclude=ON_N1)
    drill.interrupt(lambda: cluster.run("scancel", drill.job_id), by=signal.SIGTERM)
    drill.wait_for_end()
    return drill


def failing_alike(cluster: SlurmCluster, folder: Path) -> Drill:
    """A file is in the way of the release: every start ends at the last step."""
    drill = launch_drill(cluster, folder, exclude=ON_N1, requeue={"same_failure": 2})
    (drill.out / ".release-partial").touch()
    drill.wait_for_requeue(1)
    drill.start_again()
    drill.wait_for_end()
    return drill


DRILLS = (
    losing_a_node_and_a_rank,
    over_its_limit,
    requeued_and_preempted,
    undisturbed,
    failing_alike,
    cancelled,
)
Results = dict[Callable[[SlurmCluster, Path], Drill], Future[Drill]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(num_nodes=4, cpus=8, slurmd_timeout_s=10, extra=CONF) as running:
        yield running


@pytest.fixture(scope="module")
def results(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    folder = tmp_path_factory.mktemp("drills")
    with ThreadPoolExecutor(max_workers=3) as pool:
        futures = {drill: pool.submit(drill, cluster, folder / drill.__name__) for drill in DRILLS}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.fixture(scope="module")
def reference(results: Results) -> Drill:
    return results[undisturbed].result()


def assert_as_if_nothing_had_happened(drill: Drill, reference: Drill, *, starts: int) -> None:
    """Same weights bit for bit, every batch once, one run."""
    assert len(drill.events("run")) == starts
    assert {event["run_id"] for event in drill.events("run")} == {drill.events("run")[0]["run_id"]}
    assert list(drill.losses()) == list(range(1, NUM_STEPS + 1))
    assert drill.losses() == reference.losses()
    assert drill.weights() == reference.weights()


def test_a_run_over_its_time_limit_saves_comes_back_and_ends_in_the_same_weights(
    results: Results, reference: Drill
) -> None:
    drill = results[over_its_limit].result()
    assert_as_if_nothing_had_happened(drill, reference, starts=2)
    (stopped,) = drill.events("stopped")
    assert stopped["reason"] == "SIGUSR2"
    assert drill.verdict(0)["reason"] == f"stopped, saved up to step {stopped['step']}"
    assert [event["step"] for event in drill.events("resumed")] == [stopped["step"]]


def test_a_run_that_is_requeued_and_preempted_saves_each_time_and_stays_one_run_in_mlflow(
    results: Results, reference: Drill
) -> None:
    drill = results[requeued_and_preempted].result()
    assert_as_if_nothing_had_happened(drill, reference, starts=3)
    stopped = drill.events("stopped")
    assert [event["reason"] for event in stopped] == ["SIGTERM", "SIGTERM"]
    assert [event["step"] for event in drill.events("resumed")] == [event["step"] for event in stopped]
    assert [drill.verdict(restart)["action"] for restart in range(3)] == ["leave", "leave", "finished"]
    with closing(sqlite3.connect(drill.out.parent / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        steps = database.execute("SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step").fetchall()
    assert [step for (step,) in steps] == list(range(1, NUM_STEPS + 1))


def test_a_run_that_loses_a_node_and_then_a_rank_comes_back_elsewhere_and_ends_in_the_same_weights(
    results: Results, reference: Drill
) -> None:
    drill = results[losing_a_node_and_a_rank].result()
    assert_as_if_nothing_had_happened(drill, reference, starts=3)
    killed = drill.verdict(1)
    assert (killed["action"], killed["exclude"], killed["failure"]["code"]) == ("requeue", ["n4"], 137)
    assert drill.nodes() == ["n1", "n3"]


def test_a_run_that_scancel_ends_has_saved_and_does_not_come_back(results: Results) -> None:
    drill = results[cancelled].result()
    (stopped,) = drill.events("stopped")
    assert drill.events("checkpoint")[-1]["step"] == stopped["step"]
    assert drill.cluster.job(drill.job_id)["JobState"] == "CANCELLED"
    assert drill.cluster.job(drill.job_id)["Restarts"] == "0"
    assert drill.verdict(0)["action"] == "stop"


def test_a_run_that_fails_the_same_way_again_gives_up_and_says_why(results: Results) -> None:
    drill = results[failing_alike].result()
    assert drill.cluster.job(drill.job_id)["JobState"] == "FAILED"
    noted = read_gave_up(drill.out)
    assert noted is not None
    assert noted.reason.startswith(
        "failed 2 times in a row in the same way: rank 0 on n1 ended with exit code 1"
    )
    assert f"after step {NUM_STEPS}: release: " in noted.reason
    assert [event["step"] for event in drill.events("resumed")] == [NUM_STEPS]


def test_a_run_comes_back_on_2_of_4_nodes_with_the_same_batches(
    cluster: SlurmCluster, results: Results, reference: Drill, tmp_path: Path
) -> None:
    for future in results.values():
        future.exception()  # the drills before have ended, one way or another
    cluster.wait_until(lambda: set(cluster.node_states().values()) == {"idle"}, what="four free nodes")
    drill = launch_drill(cluster, tmp_path / "fewer", nodes={"min": 2, "max": 4}, tasks_per_node=2)
    drill.interrupt(lambda: cluster.run("scontrol", "requeue", drill.job_id), by=signal.SIGTERM)
    drill.wait_for_requeue(1)
    cluster.run("scontrol", "update", "nodename=n3,n4", "state=drain", "reason=drill")
    drill.start_again()
    drill.finish()
    assert [event["world_size"] for event in drill.events("run")] == [8, 4]
    assert drill.nodes() == ["n1", "n2"]
    assert list(drill.losses()) == list(range(1, NUM_STEPS + 1))
    assert list(drill.losses().values()) == pytest.approx(list(reference.losses().values()), rel=1e-3)
