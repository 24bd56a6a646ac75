"""The script that goes to sbatch, read and run by bash."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from launch.submission.job import Job
from launch.submission.record import write_submission
from launch.submission.refusals import explain_refusal
from launch.submission.slurm import script_text, submit
from tests.launch.submission.test_record import submission


@pytest.fixture(autouse=True)
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands as a user's PATH finds them; srun and the interpreter print what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    texts = {
        "sbatch": "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1",
        "srun": 'echo "srun $SLURM_NNODES $SLURM_NTASKS $SLURM_TASKS_PER_NODE $PWD $A $MIRADA_FIRST_NODE" "$@"',
        "squeue": "",
        "sinfo": "echo main: 4 nodes",
        "scontrol": 'case "$2" in hostnames) printf "n1\\nn2\\n";; *) echo "  X=1 NodeAddr=10.0.0.$3 Y=2";; esac',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def script(tmp_path: Path, *, num_jobs: int = 1, max_parallel: int | None = None, **settings: Any) -> str:
    cluster = ClusterConfig.model_validate({"kind": "slurm", "time": "90 min", **settings})
    (tmp_path / "snap").mkdir(exist_ok=True)
    return script_text(
        [Job(run_folder=tmp_path / f"run {index}") for index in range(num_jobs)],
        cluster,
        tmp_path / "launch",
        snapshot=tmp_path / "snap",
        name="mine",
        max_parallel=max_parallel,
    )


def run(text: str, **environment: str) -> str:
    """What bash does with it, the last command (which would decide what comes next) only shown."""
    shown = text.replace(f"exec {sys.executable}", "echo after")
    result = subprocess.run(
        ["bash", "-c", shown],
        env={**os.environ, "SLURM_JOB_NODELIST": "n[1-2]", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def srun_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    return line


def test_the_options_are_the_cluster_files(tmp_path: Path) -> None:
    text = script(
        tmp_path,
        nodes=4,
        gpus_per_node=8,
        cpus_per_task=12,
        memory="64GB",
        partition="gpu",
        account="me",
        qos="high",
        constraint="h100",
        exclude="n7",
        reservation="course",
        grace_s=300,
        extra={"mail-type": "END"},
    )
    for option in (
        "nodes=4",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "cpus-per-task=12",
        "mem=64GB",
        "partition=gpu",
        "account=me",
        "qos=high",
        "constraint=h100",
        "exclude=n7",
        "reservation=course",
        "signal=USR2@300",
        "mail-type=END",
        "time=90",
        "job-name=mine",
        "open-mode=append",
    ):
        assert f"#SBATCH --{option}\n" in text
    assert "#SBATCH --requeue\n" in text
    assert "wckey" not in text


def test_srun_gets_the_cpus_and_ends_the_step_as_a_whole(tmp_path: Path) -> None:
    line = srun_line(script(tmp_path, cpus_per_task=12))
    assert "--cpus-per-task=12" in line and "--kill-on-bad-exit=1" in line and "--unbuffered" in line


def test_the_tasks_start_in_the_snapshot_with_the_users_set_up(tmp_path: Path) -> None:
    printed = run(script(tmp_path, setup=["export A=$((6 * 7))"], environment={"B": "it's"}))
    assert f"{tmp_path}/snap 42 10.0.0.n1 --unbuffered" in printed
    assert f"after -m launch.submission.after {tmp_path}/run 0\n" in printed


def test_what_comes_next_is_decided_though_the_job_is_ended_meanwhile(tmp_path: Path) -> None:
    """SLURM's SIGTERM may come while the interpreter starts, which could not ignore it by itself yet."""
    ended = "exec bash -c 'kill -TERM $$; echo still here'"
    assert run(script(tmp_path).replace(f"exec {sys.executable}", ended)).endswith("still here\n")


def test_each_task_of_an_array_decides_about_its_own_run(tmp_path: Path) -> None:
    text = script(tmp_path, num_jobs=3, max_parallel=2)
    assert "#SBATCH --array=0-2%2\n" in text
    assert f"after -m launch.submission.after {tmp_path}/run 2\n" in run(text, SLURM_ARRAY_TASK_ID="2")


@pytest.mark.parametrize(("given", "used"), [(2, 2), (3, 2), (4, 4), (5, 4), (7, 4), (8, 8)])
def test_nodes_that_cannot_share_the_batch_are_left_idle(tmp_path: Path, given: int, used: int) -> None:
    write_submission(replace(submission(tmp_path / "run 0"), node_counts=(2, 4, 8)))
    text = script(tmp_path, nodes={"min": 2, "max": 8}, tasks_per_node=3)
    printed = run(text, SLURM_JOB_NUM_NODES=str(given), SLURM_NNODES=str(given), SLURM_NTASKS=str(given * 3))
    assert f"srun {used} {used * 3} 3(x{used}) " in printed


def test_where_the_number_of_nodes_may_change_sbatch_is_told_cores_and_srun_tasks(tmp_path: Path) -> None:
    text = script(tmp_path, nodes={"min": 2, "max": 4}, tasks_per_node=2, cpus_per_task=3)
    assert "#SBATCH --nodes=2-4\n" in text and "#SBATCH --mincpus=6\n" in text
    assert "ntasks" not in "".join(line for line in text.splitlines() if line.startswith("#SBATCH"))
    assert "srun 3 6 2(x3) " in run(text, SLURM_JOB_NUM_NODES="3", SLURM_NNODES="3")


def test_pyxis_is_told_the_image_and_the_mounts(tmp_path: Path) -> None:
    container = {"kind": "pyxis", "image": "nvcr.io/x:1", "mounts": ["/data:/data"], "python": "/opt/python"}
    line = srun_line(script(tmp_path, container=container))
    assert "--container-image=nvcr.io/x:1" in line and f"--container-workdir={tmp_path}/snap" in line
    assert (
        "--container-mounts=/data:/data," in line.replace("'", "")
        and f"{tmp_path}/run 0:{tmp_path}/run 0" in line
    )
    assert " /opt/python -u -m submitit" in line


def test_apptainer_stands_before_the_interpreter(tmp_path: Path) -> None:
    container = {"kind": "apptainer", "image": "my image.sif", "mounts": ["/data"]}
    line = srun_line(script(tmp_path, container=container, gpus_per_node=1))
    assert f"apptainer exec --nv --pwd {tmp_path}/snap --bind=/data " in line
    assert "'my image.sif' python3 -u -m submitit" in line


def test_a_refusal_is_slurms_own_words_and_what_to_do(tmp_path: Path) -> None:
    cluster = ClusterConfig(kind="slurm", time="90 min", partition="nope")
    write_submission(submission(tmp_path / "run"))
    with pytest.raises(ConfigError) as refused:
        submit(
            [Job(run_folder=tmp_path / "run")],
            cluster,
            tmp_path / "run" / "launch",
            snapshot=tmp_path,
            name="a",
        )
    for words in (
        "SLURM refuses the job:\n  sbatch: error: invalid partition specified: nope\n",
        "what to do: name one of the partitions below",
        "asked for: 1 nodes of 1 CPUs, time 90 min, partition nope",
        "there is main: 4 nodes",
    ):
        assert words in str(refused.value)
    assert [path.name for path in (tmp_path / "run" / "launch").iterdir()] == ["submission.json"]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Batch job submission failed: Node count specification invalid", "lower 'nodes'"),
        ("Requested node configuration is not available", "lower 'nodes', 'cpus_per_task'"),
        ("sbatch: error: Invalid generic resource (gres) specification", "gpus_per_node"),
        ("Batch job submission failed: Invalid feature specification", "constraint"),
        ("Invalid account or account/partition combination specified", "partition"),
        ("Batch job submission failed: Invalid qos specification", "'qos'"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "lower 'time'"),
        ("Unable to contact slurm controller (connect failure)", "try again"),
        ("sbatch: unrecognized option '--frobnicate=1'", "'extra'"),
        ("something new", "correct the cluster file"),
    ],
)
def test_the_advice_fits_the_refusal(words: str, advice: str) -> None:
    cluster = ClusterConfig(kind="slurm", time="90 min")
    assert advice in explain_refusal(words, cluster).split("what to do: ")[1].split("\n")[0]


def test_a_job_around_us_does_not_leak_into_the_submission(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands / "sbatch").write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho 'Submitted batch job 5'\n")
    for name in ("SLURM_CPUS_PER_TASK", "SBATCH_PARTITION", "SLURM_CONF", "MASTER_ADDR"):
        monkeypatch.setenv(name, "x")
    write_submission(submission(tmp_path / "run"))
    cluster = ClusterConfig(kind="slurm", time="90 min")
    folder = tmp_path / "run" / "launch"
    assert submit([Job(run_folder=tmp_path / "run")], cluster, folder, snapshot=tmp_path, name="a") == ["5"]
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert {"SLURM_CPUS_PER_TASK", "SBATCH_PARTITION"}.isdisjoint(seen)
    assert (seen["SLURM_CONF"], seen["MASTER_ADDR"], os.environ["SBATCH_PARTITION"]) == ("x", "x", "x")
