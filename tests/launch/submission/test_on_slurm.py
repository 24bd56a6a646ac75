"""Submissions on a real SLURM of four nodes: what starts there, what is refused, and that edits change nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.cluster import ClusterConfig
from launch.comeback.attempts import read_ends
from launch.submission.folder import make_private_folder
from launch.submission.job import Job
from launch.submission.record import attempt_folder, read_submission, write_submission
from launch.submission.slurm import submit
from launch.submission.snapshot import Snapshot, read_source, take_snapshot
from tests.launch.submission.test_record import submission
from tests.support.other_user import OtherUser, other_user
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster

ROOT = Path(__file__).resolve().parents[3]
REASON = missing_for_slurm()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

RECIPE = "configs/smoke/pretrain_vit.yaml"
SHORT = (
    "train.duration=3 steps",
    "schedule.warmup=1 steps",
    "train.global_batch=16",
    "data.val=null",
    "data.workers=0",
    "tracking.uri=off",
)
PROBE = """
import json, os, sys, time
from pathlib import Path
mode, folder = sys.argv[1], Path(sys.argv[2])
rank = os.environ["RANK"]
(folder / f"rank{rank}.json").write_text(json.dumps({"environment": dict(os.environ), "path": sys.path}))
if mode == "one fails" and rank == "1":
    sys.exit("rank 1 has had enough")
if mode == "one fails":
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(num_nodes=4) as running:
        yield running


@pytest.fixture
def at_the_login_node(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is called in this process."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])


LAUNCH = ("-m", "launch.cli", "launch", "pretrain", RECIPE, *SHORT, "--cluster", "c.yaml")
CLUSTER_FILE = "kind: slurm\ntime: 30 min\n"


def launch(
    cluster: SlurmCluster, folder: Path, *words: str, root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`mirada launch pretrain` typed in `folder`."""
    (folder / "c.yaml").write_text(CLUSTER_FILE)
    return subprocess.run(
        [sys.executable, *LAUNCH, *words],
        cwd=folder,
        env={**cluster.environment, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def wait_for_jobs(cluster: SlurmCluster, job_ids: Sequence[str], timeout_s: float) -> None:
    wanted = ",".join(job_ids)
    cluster.wait_until(
        lambda: (
            not cluster.run("squeue", "-h", "-t", "all", "-j", wanted, "-o", "%T").split().count("PENDING")
            and set(cluster.run("squeue", "-h", "-t", "all", "-j", wanted, "-o", "%T").split())
            <= {"COMPLETED", "FAILED", "CANCELLED"}
        ),
        what=f"the end of jobs {wanted}",
        timeout_s=timeout_s,
    )


@pytest.mark.slow
def test_runs_on_1_2_and_4_nodes_at_once_from_code_that_is_broken_afterwards(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    checkout = copy_of_the_code(tmp_path / "checkout")
    job_ids = {}
    for nodes in (1, 2, 4):
        held = ("extra.begin=now+1hour", f"nodes={nodes}", "--out", f"on{nodes}")
        told = launch(cluster, tmp_path, *held, root=checkout)
        assert told.returncode == 0, told.stderr
        record = read_submission(tmp_path / f"on{nodes}")
        assert (
            record is not None
            and f"submitted   job {record.job_ids[0]}: pretrain on {nodes} nodes" in told.stdout
        )
        job_ids[nodes] = record.job_ids[0]
    for path in checkout.rglob("*.py"):
        path.write_text("raise SystemExit('this was edited after the submission')\n")
    for job_id in job_ids.values():
        cluster.run("scontrol", "update", f"jobid={job_id}", "StartTime=now")
    wait_for_jobs(cluster, list(job_ids.values()), timeout_s=600)
    for nodes, job_id in job_ids.items():
        run = tmp_path / f"on{nodes}"
        log = (run / "launch" / f"{job_id}_0_log.out").read_text()
        ends = read_ends(attempt_folder(run, job_id, 0))
        assert [(end.rank, end.code, end.num_ranks) for end in ends] == [
            (k, 0, nodes) for k in range(nodes)
        ], log
        assert len({end.node for end in ends}) == nodes
        assert (run / "release" / "model.safetensors").is_file()
        assert "mirada: start 1 of job" in log and "finished" in log
        assert (run / "launch").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def neighbour() -> Iterator[OtherUser]:
    folder = Path(tempfile.mkdtemp(prefix="neighbour-"))
    folder.chmod(0o755)
    with other_user(folder) as user:
        yield user
    shutil.rmtree(folder)


@pytest.mark.slow
def test_two_users_train_at_once_each_in_a_folder_of_their_own(
    cluster: SlurmCluster, tmp_path: Path, neighbour: OtherUser
) -> None:
    code = copy_of_the_code(neighbour.home.parent / "code")
    (neighbour.home / "c.yaml").write_text(CLUSTER_FILE)
    told = [
        launch(cluster, tmp_path, "--out", "run", root=code),
        neighbour.run(
            *LAUNCH, "--out", "run", cwd=neighbour.home, environment=cluster.environment, root=code
        ),
    ]
    assert [each.returncode for each in told] == [0, 0], [each.stderr for each in told]
    folders = [tmp_path / "run", neighbour.home / "run"]
    records = [read_submission(folder) for folder in folders]
    job_ids = [record.job_ids[0] for record in records if record is not None]
    wait_for_jobs(cluster, job_ids, timeout_s=600)
    owners = [os.getuid(), neighbour.uid]
    for folder, job_id, owner in zip(folders, job_ids, owners, strict=True):
        log = (folder / "launch" / f"{job_id}_0_log.out").read_text()
        assert "mirada: start 1 of job" in log and "finished" in log
        assert {path.stat().st_uid for path in folder.rglob("*")} == {owner}
        assert cluster.job(job_id)["UserId"].endswith(f"({owner})")
    (neighbour.home.parent / "theirs").mkdir()
    intruding = neighbour.run(
        *LAUNCH, "--out", str(neighbour.home.parent / "theirs"),
        cwd=neighbour.home, environment=cluster.environment, root=code,
    )  # fmt: skip
    assert intruding.returncode == 2
    assert "belongs to another user (number 0)" in intruding.stderr


def copy_of_the_code(target: Path) -> Path:
    """A checkout of our packages as they are now, without a repository of its own."""
    source = read_source(ROOT)
    for name in source.files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


def test_what_cannot_run_is_refused_with_slurms_words_and_leaves_no_job(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    before = cluster.run("squeue", "-h", "-o", "%i")
    cases = {
        "partition=nope": ("Invalid partition name specified", "there is main: 4 nodes of 4 CPUs"),
        "memory=900GB": ("Requested node configuration is not available", "lower"),
        "nodes=8": ("SLURM would keep the job waiting for ever (Partition", "lower 'nodes'"),
        "extra.frobnicate=1": ("unrecognized option '--frobnicate=1'", "take that key out of 'extra'"),
        "parttition=main": ("parttition: no such key", "did you mean 'partition'?"),
        f"shared=[{ROOT / 'configs'}]": ("--out: ", "move it there"),
    }
    for setting, words in cases.items():
        refused = launch(cluster, tmp_path, setting, "--out", "run")
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert all(word in refused.stderr for word in words), refused.stderr
        assert read_submission(tmp_path / "run") is None
    left = [path.name for path in (tmp_path / "run" / "launch").iterdir() if path.is_file()]
    assert left == []
    assert cluster.run("squeue", "-h", "-o", "%i") == before


def test_a_folder_that_others_can_write_is_refused(cluster: SlurmCluster, tmp_path: Path) -> None:
    make_private_folder(tmp_path / "run").chmod(0o770)
    refused = launch(cluster, tmp_path, "--out", "run")
    assert refused.returncode == 2
    assert f"others may write in '{tmp_path}/run/launch' (mode 0770)" in refused.stderr
    assert list((tmp_path / "run" / "launch").iterdir()) == []


def test_without_sbatch_on_the_path_it_says_what_to_do(cluster: SlurmCluster, tmp_path: Path) -> None:
    elsewhere = replace(cluster, environment={**cluster.environment, "PATH": str(tmp_path)})
    refused = launch(elsewhere, tmp_path, "--out", "run")
    assert refused.returncode == 2
    assert "no sbatch" in refused.stderr and "submit from a login node" in refused.stderr


def test_a_dry_run_prints_the_plan_and_a_script_that_sbatch_takes(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    shown = launch(cluster, tmp_path, "nodes={min: 2, max: 4}", "--out", "run", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    plan, _, script = shown.stdout.partition("#!/bin/bash")
    assert "batch       16 images a step: 8 on 2 ranks, 4 on 4 ranks each" in plan
    assert "for mirada_nodes in 4 2; do" in script  # of 3 nodes it uses 2
    assert "limit       30 min a start, up to 20 restarts; asked to save 120 s before" in plan
    assert not (tmp_path / "run").exists()
    (tmp_path / "script.sh").write_text(
        "#!/bin/bash" + script.replace(str(tmp_path / "run" / "launch"), str(tmp_path))
    )
    cluster.run("sbatch", "--test-only", str(tmp_path / "script.sh"))


def prepared(folder: Path, mode: str, snapshot: Snapshot, **fields: Any) -> Job:
    """A run whose program is the probe."""
    make_private_folder(folder)
    record = submission(folder)
    command = ("probe", mode, str(folder))
    write_submission(replace(record, command=command, snapshot=snapshot.path, workdir=folder, **fields))
    return Job(run_folder=folder)


def environment_of(folder: Path, rank: int) -> dict[str, str]:
    return dict(json.loads((folder / f"rank{rank}.json").read_text())["environment"])


@pytest.mark.slow
@pytest.mark.usefixtures("at_the_login_node")
def test_what_a_rank_is_told_and_that_a_step_ends_as_a_whole(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four submissions side by side: two nodes of two ranks, an array of three, a range narrowed, one rank failing."""
    for name in ("OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    snapshot = take_snapshot(tmp_path, {"probe.py": PROBE}, digest="a", source=read_source(ROOT))
    base: dict[str, Any] = {"kind": "slurm", "time": "10 min", "requeue": {"budget": 0}}
    settings: dict[str, dict[str, Any]] = {
        "narrowed": {"nodes": {"min": 2, "max": 4}, "extra": {"nodelist": "n[1-4]"}},
        "pairs": {"nodes": 2, "tasks_per_node": 2, "cpus_per_task": 2},
        "array": {"environment": {"MASTER_PORT": "21212"}, "max_parallel": 2},
        "failing": {"nodes": 2},
    }
    configs = {name: ClusterConfig.model_validate({**base, **more}) for name, more in settings.items()}
    folders = {name: [tmp_path / name] for name in configs} | {
        "array": [tmp_path / f"point{k}" for k in range(3)]
    }
    job_ids: dict[str, list[str]] = {}
    for name, config in configs.items():
        fields: dict[str, Any] = {"cluster": config, "node_counts": (2, 3) if name == "narrowed" else ()}
        mode = "one fails" if name == "failing" else "works"
        jobs = [prepared(folder, mode, snapshot, **fields) for folder in folders[name]]
        job_ids[name] = submit(jobs, config, folders[name][0] / "launch", snapshot=snapshot.path, name=name)
    wait_for_jobs(cluster, [job_id for ids in job_ids.values() for job_id in ids], timeout_s=600)

    seen = [environment_of(tmp_path / "pairs", rank) for rank in range(4)]
    assert [(each["LOCAL_RANK"], each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"]) for each in seen] == [
        ("0", "4", "2"), ("1", "4", "2"), ("0", "4", "2"), ("1", "4", "2")
    ]  # fmt: skip
    assert {each["MASTER_ADDR"] for each in seen} == {"127.0.0.1"}
    assert len({each["MASTER_PORT"] for each in seen}) == 1
    assert {(each["SLURM_CPUS_PER_TASK"], each["OMP_NUM_THREADS"]) for each in seen} == {("2", "2")}
    path = json.loads((tmp_path / "pairs" / "rank0.json").read_text())["path"]
    assert path[0] == str(snapshot.path) and str(ROOT) not in path

    assert [job_id.split("_")[1] for job_id in job_ids["array"]] == ["0", "1", "2"]
    assert [environment_of(folder, 0)["MASTER_PORT"] for folder in folders["array"]] == ["21212"] * 3
    for folder, job_id in zip(folders["array"], job_ids["array"], strict=True):
        assert [end.code for end in read_ends(attempt_folder(folder, job_id, 0))] == [0]

    given = environment_of(tmp_path / "narrowed", 0)
    assert (given["SLURM_JOB_NODELIST"], given["WORLD_SIZE"]) == ("n[1-4]", "3")
    assert not (tmp_path / "narrowed" / "rank3.json").exists()

    (failed,) = job_ids["failing"]
    ends = read_ends(attempt_folder(tmp_path / "failing", failed, 0))
    assert (1, 1, "rank 1 has had enough") in [(end.rank, end.code, end.last_line) for end in ends]
    assert cluster.run("squeue", "-h", "-t", "all", "-j", failed, "-o", "%T").strip() == "FAILED"
    cluster.wait_until(
        lambda: not any(pid.isdigit() and is_probe(pid, tmp_path / "failing") for pid in os.listdir("/proc")),
        what="the end of the rank that did not fail, whom the kernel kills with its watcher",
    )


def is_probe(pid: str, folder: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"probe" in words and os.fsencode(folder) in words
