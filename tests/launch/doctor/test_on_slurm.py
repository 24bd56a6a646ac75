"""`mirada doctor` on a real SLURM of two nodes, and on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

ROOT = Path(__file__).resolve().parents[3]
REASON = missing_for_slurm()
needs_slurm = pytest.mark.skipif(REASON is not None, reason=str(REASON))
pytestmark = pytest.mark.slow

SLURM = "kind: slurm\npartition: main\nnodes: 2\ntime: 1 hour\nshared: [{folder}]\n"


def doctor(
    folder: Path, cluster_file: str, *words: str, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    (folder / "c.yaml").write_text(cluster_file.format(folder=folder))
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor", "--cluster", "c.yaml", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def lines_by_check(printed: str) -> dict[str, tuple[str, str]]:
    """Level and the rest of each line."""
    return {line[6:25].strip(): (line[:5].strip(), line[25:]) for line in printed.splitlines()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(num_nodes=2) as running:
        yield running


@pytest.mark.slurm
@needs_slurm
def test_two_nodes_are_examined_by_a_job_with_a_line_for_each_check(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    data = ("--data", "mirada://sample/train", "--tracking", "http://127.0.0.1:9")
    result = doctor(tmp_path, SLURM, *data, environment=cluster.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = lines_by_check(result.stdout)
    assert lines["slurm"] == (
        "ok",
        "partition 'main': 2 node(s) up, 4 cores each, GPUs: none, time limit 1:00:00",
    )
    assert lines["ranks"] == ("ok", "2 rank(s) on 2 node(s): n1, n2")
    assert "between 2 nodes (gloo, bus bandwidth)" in lines["all-reduce"][1]
    assert lines["shared folder"][1].startswith("seen by all nodes after")
    assert lines["clocks"][1].startswith("n2 is ")
    assert lines["free ports"] == (
        "ok",
        "every rank reaches rank 0 at 127.0.0.1, also on a port of its choice",
    )
    assert lines["data"][1].startswith("'mirada://sample/train': 6,000 samples, all ranks together read")
    assert lines["attention"][1].startswith("sdpa, ")
    assert lines["tracking"][0] == "note" and "mirada sync --watch" in lines["tracking"][1]
    assert lines["tracking from here"][0] == "note"
    assert {level for level, _ in lines.values()} == {"ok", "note"}
    assert "job 1: " in result.stderr


@pytest.mark.slurm
@needs_slurm
def test_what_can_be_seen_from_the_login_node_queues_no_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    before = cluster.run("squeue", "-h", "-t", "all", "-o", "%i")
    result = doctor(tmp_path, SLURM, "partition=nope", environment=cluster.environment)
    assert result.returncode == 1
    assert lines_by_check(result.stdout)["slurm"] == (
        "FAIL",
        "there is no partition 'nope': choose one of main",
    )
    elsewhere = doctor(tmp_path, SLURM, "nodes=3", f"shared=[{ROOT}]", environment=cluster.environment)
    assert elsewhere.returncode == 1
    lines = lines_by_check(elsewhere.stdout)
    assert lines["slurm"][1].endswith(
        "3 are asked for: lower nodes, or name another partition: sinfo lists them"
    )
    assert f"is not below '{ROOT}': name a folder there with --out" in lines["folders"][1]
    assert cluster.run("squeue", "-h", "-t", "all", "-o", "%i") == before


@pytest.mark.slurm
@needs_slurm
def test_a_job_that_cannot_be_set_up_is_a_finding_with_the_end_of_its_log(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    setup = "setup: [echo there is no module cuda; exit 3]\n"
    result = doctor(tmp_path, SLURM + setup, environment=cluster.environment)
    assert result.returncode == 1
    level, said = lines_by_check(result.stdout)["job"]
    assert level == "FAIL" and "ended as FAILED" in said
    assert "there is no module cuda" in result.stderr


def test_ranks_of_this_machine_that_lack_cores_and_data_are_failures_with_advice(tmp_path: Path) -> None:
    words = ("--data", str(tmp_path / "nowhere"), "--json")
    result = doctor(tmp_path, "kind: local\ntasks_per_node: 2\ncpus_per_task: 4096\n", *words)
    assert result.returncode == 1, result.stderr
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)}
    assert findings["cpus per task"]["level"] == "fail"
    assert findings["cpus per task"]["said"].endswith("cores, not 4096")
    assert "lower cpus_per_task" in findings["cpus per task"]["advice"]
    lacking = findings["data"]
    assert lacking["level"] == "fail" and "mirada data index" in lacking["said"]
    assert findings["ranks"]["said"].startswith("2 rank(s) on 1 node(s)")
    assert findings["shared folder"]["level"] == "ok"
