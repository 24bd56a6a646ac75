"""The end of a batch script, `python -m launch.submission.after RUN`: jobs of a real SLURM whose ranks have ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from configs.cluster import ClusterConfig
from configs.load import packaged_root
from launch.comeback.attempts import RankEnd, record_end
from launch.comeback.verdict import read_gave_up
from launch.following.run_state import CANCELLED
from launch.submission.record import Submission, attempt_folder, launch_folder, write_submission
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

REASON = missing_for_slurm()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(num_nodes=4, extra="PartitionName=small Nodes=n1,n2 State=UP") as running:
        yield running


@dataclass(frozen=True, kw_only=True)
class Start:
    """A job of two nodes with one rank each, which runs; its ranks have ended."""

    cluster: SlurmCluster
    run: Path
    job_id: str
    nodes: list[str]

    def end_script(self) -> subprocess.CompletedProcess[str]:
        """What the batch script does behind srun."""
        environment = {
            **self.cluster.environment,
            "PYTHONPATH": str(packaged_root()),
            "SLURM_JOB_ID": self.job_id,
            "SLURM_JOB_NODELIST": ",".join(self.nodes),
            "SLURM_NTASKS": "2",
        }
        command = [sys.executable, "-m", "launch.submission.after", str(self.run)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    def verdict(self) -> dict[str, Any]:
        file = attempt_folder(self.run, self.job_id, 0) / "verdict.json"
        return dict(json.loads(file.read_text()))


def start(
    cluster: SlurmCluster, run: Path, *codes: int | None, partition: str = "main", last_line: str = ""
) -> Start:
    """Submits a job that only waits, and notes how the ranks of its first start ended."""
    launch_folder(run).mkdir(parents=True)
    settings = ClusterConfig(kind="slurm", time="30 min", nodes=2, partition=partition)
    job_id = cluster.run(
        "sbatch", "--parsable", "--requeue", "--output=/dev/null", "--nodes=2", "--ntasks-per-node=1",
        f"--partition={partition}", "--wrap=sleep 600",
    ).strip()  # fmt: skip
    write_submission(
        Submission(
            program="pretrain",
            command=("pretrain", "recipe.yaml", "--out", str(run)),
            recipe="recipe.yaml",
            overrides=(),
            cluster=settings,
            snapshot=packaged_root(),
            commit="",
            config_hash="",
            run_folder=run,
            workdir=run,
            created=0.0,
            user="root",
            job_ids=(job_id,),
        )
    )
    listed = cluster.wait_for_state(job_id, "RUNNING")["NodeList"]
    nodes = cluster.run("scontrol", "show", "hostnames", listed).split()
    for rank, code in enumerate(codes):
        if code is not None:
            end = RankEnd(rank=rank, num_ranks=2, node=nodes[rank], code=code, last_line=last_line)
            record_end(attempt_folder(run, job_id, 0), end)
    return Start(cluster=cluster, run=run, job_id=job_id, nodes=nodes)


def test_a_job_whose_ranks_finished_ends_well(cluster: SlurmCluster, tmp_path: Path) -> None:
    ended = start(cluster, tmp_path / "run", 0, 0)
    assert ended.end_script().returncode == 0
    assert ended.verdict()["action"] == "finished"
    assert cluster.job(ended.job_id)["JobState"] == "RUNNING"
    cluster.run("scancel", ended.job_id)


def test_a_job_whose_ranks_saved_is_requeued_on_any_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    ended = start(cluster, tmp_path / "run", 75, 75)
    done = ended.end_script()
    assert done.returncode == 75
    assert "mirada: start 1 of job" in done.stdout
    cluster.wait_for_requeue(ended.job_id, restarts=1)
    assert cluster.job(ended.job_id)["ExcNodeList"] == "(null)"
    cluster.run("scancel", ended.job_id)


@pytest.mark.parametrize("codes", [(69, 137), (69, 70), (69, None)], ids=["killed", "hung", "vanished"])
def test_the_node_of_a_lost_rank_is_left_out(
    cluster: SlurmCluster, tmp_path: Path, codes: tuple[int | None, ...]
) -> None:
    ended = start(cluster, tmp_path / "run", *codes)
    assert ended.end_script().returncode == 75
    cluster.wait_for_requeue(ended.job_id, restarts=1)
    assert cluster.job(ended.job_id)["ExcNodeList"] == ended.nodes[1]
    cluster.run("scancel", ended.job_id)


def test_no_node_is_left_out_when_too_few_would_remain(cluster: SlurmCluster, tmp_path: Path) -> None:
    ended = start(cluster, tmp_path / "run", 69, 137, partition="small")
    done = ended.end_script()
    assert done.returncode == 75
    assert "not leaving out n2: fewer than 2 nodes would remain" in done.stdout
    cluster.wait_for_requeue(ended.job_id, restarts=1)
    assert cluster.job(ended.job_id)["ExcNodeList"] == "(null)"
    cluster.run("scancel", ended.job_id)


def test_a_cancelled_run_is_not_requeued(cluster: SlurmCluster, tmp_path: Path) -> None:
    ended = start(cluster, tmp_path / "run", 75, 75)
    (launch_folder(ended.run) / CANCELLED).touch()
    assert ended.end_script().returncode == 130
    assert ended.verdict()["action"] == "stop"
    assert cluster.job(ended.job_id)["JobState"] == "RUNNING"
    cluster.run("scancel", ended.job_id)


def test_a_mistake_ends_the_job_with_its_words(cluster: SlurmCluster, tmp_path: Path) -> None:
    ended = start(cluster, tmp_path / "run", 2, 2, last_line="error: optim.lr: must be positive")
    assert ended.end_script().returncode == 2
    noted = read_gave_up(ended.run)
    assert noted is not None and noted.reason == "a mistake to correct: optim.lr: must be positive"
    cluster.run("scancel", ended.job_id)


def test_words_of_an_earlier_start_do_not_explain_this_one(cluster: SlurmCluster, tmp_path: Path) -> None:
    ended = start(cluster, tmp_path / "run", 1, 69, last_line="ImportError: no module")
    events = [
        {"time": 1.0, "kind": "run", "world_size": 2},
        {"time": 2.0, "kind": "failed", "error": "OSError: no room", "step": 7},
    ]
    (ended.run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    ended.end_script()
    assert ended.verdict()["failure"]["line"] == "ImportError: no module"
    cluster.run("scancel", ended.job_id)
