"""The mini SLURM that later tests launch on is a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

ROOT = Path(__file__).resolve().parents[2]
REASON = missing_for_slurm()
NO_BOOKS = missing_for_slurm(accounting=True)
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SUM_OF_RANKS = """
import torch, torch.distributed as dist
from engine.world import close_world, init_world
world = init_world()
total = torch.tensor([float(world.rank + 1)])
dist.all_reduce(total)
print(world.rank, world.size, world.local_rank, int(total))
close_world()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(num_nodes=2) as running:
        yield running


def test_srun_starts_one_task_per_node_with_its_rank(cluster: SlurmCluster) -> None:
    printed = cluster.run(
        "srun",
        "-N2",
        "-n2",
        "bash",
        "-c",
        "echo $SLURM_PROCID $SLURM_NODEID $SLURMD_NODENAME $SLURM_STEP_NUM_TASKS",
    )
    assert sorted(printed.splitlines()) == ["0 0 n1 2", "1 1 n2 2"]


def test_a_batch_script_runs_outside_any_step(cluster: SlurmCluster, tmp_path: Path) -> None:
    output = tmp_path / "job.out"
    script = 'echo "ntasks=$SLURM_NTASKS step=${SLURM_STEP_NUM_TASKS:-none}"'
    cluster.run("sbatch", "-N2", "-n2", f"--output={output}", f"--wrap={script}")
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), what="the end of the job")
    assert output.read_text() == "ntasks=2 step=none\n"


@pytest.mark.slow
def test_ranks_started_by_srun_find_each_other(cluster: SlurmCluster) -> None:
    printed = cluster.run(
        "srun",
        "-N2",
        "-n2",
        sys.executable,
        "-c",
        SUM_OF_RANKS,
        timeout_s=600,
        PYTHONPATH=str(ROOT),
        OMP_NUM_THREADS="1",
    )
    assert sorted(printed.splitlines()) == ["0 2 0 3", "1 2 0 3"]


def test_taking_a_cluster_down_leaves_no_process_and_no_file() -> None:
    with slurm_cluster(num_nodes=1) as brief:
        folder = brief.folder
        job = subprocess.Popen(["srun", "sleep", "600"], env=brief.environment, stderr=subprocess.DEVNULL)
        brief.wait_until(lambda: brief.node_states() == {"n1": "mixed"}, what="a running job")
        assert _processes_that_mention(folder)
    job.wait(timeout=180)
    assert not folder.exists()
    assert _processes_that_mention(folder) == []


@pytest.mark.slow
@pytest.mark.skipif(NO_BOOKS is not None, reason=str(NO_BOOKS))
def test_accounting_knows_how_jobs_ended_and_that_one_was_requeued(tmp_path: Path) -> None:
    options = ("--parsable", "--output=/dev/null", "--requeue")
    with slurm_cluster(num_nodes=1, accounting=True) as cluster:
        done = cluster.run("sbatch", *options, "--wrap=true").strip()
        failed = cluster.run("sbatch", *options, "--wrap=exit 3").strip()
        began = tmp_path / "began"
        wrap = f"--wrap=[ $SLURM_RESTART_COUNT ] || {{ touch {began}; sleep 600; }}"
        again = cluster.run("sbatch", *options, wrap).strip()
        cluster.wait_until(began.exists, what="the job that is requeued")
        cluster.run("scontrol", "requeue", again)
        cluster.wait_for_requeue(again, restarts=1)
        cluster.hurry(again)
        for job_id, state in ((done, "COMPLETED"), (failed, "FAILED"), (again, "COMPLETED")):
            cluster.wait_for_state(job_id, state)

        def books() -> str:
            return cluster.run("sacct", "-X", "-n", "-P", "--duplicates", "-o", "JobID,State,ExitCode")

        expected = {
            f"{done}|COMPLETED|0:0",
            f"{failed}|FAILED|3:0",
            f"{again}|REQUEUED|0:0",
            f"{again}|COMPLETED|0:0",
        }
        cluster.wait_until(lambda: set(books().splitlines()) == expected, what=f"the books: {books()}")
    assert not cluster.folder.exists()
    assert _processes_that_mention(cluster.folder) == []


def _processes_that_mention(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if os.fsencode(folder) in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text())
            except OSError:
                continue
    return found
