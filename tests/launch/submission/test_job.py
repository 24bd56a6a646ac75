"""What a task of a job does, in a real process with the environment that srun gives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.comeback.attempts import RankEnd, read_ends
from launch.submission.job import Place, rank_environment
from launch.submission.record import attempt_folder, write_submission
from launch.submission.rendezvous import Meeting
from tests.launch.submission.test_record import submission

ROOT = Path(__file__).resolve().parents[3]
TASK = """
import sys
from pathlib import Path
from launch.submission import job
job._OTHERS_S = 120.0
job.Job(run_folder=Path(sys.argv[1]))()
"""
PROBE = """
import json, os, signal, sys, time
from pathlib import Path
mode, folder = sys.argv[1], Path(sys.argv[2])
if mode == "saves":
    signal.signal(signal.SIGUSR2, lambda *_: (print("saved", flush=True), os._exit(75)))
(folder / "new").write_text(json.dumps({"environment": dict(os.environ), "cwd": os.getcwd(), "path": sys.path}))
(folder / "new").rename(folder / f"rank{os.environ['RANK']}.json")
if mode == "fails":
    print("progress 50%\\rprogress 100%"); sys.exit("ValueError: too bad\\n")
if mode == "works":
    print("done"); sys.exit(0)
time.sleep(600)
"""


def srun_environment(rank: int = 0, num_ranks: int = 1, num_nodes: int = 1, **more: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": str(num_ranks),
        "SLURM_STEP_NUM_NODES": str(num_nodes),
        "SLURMD_NODENAME": f"n{rank + 1}",
        **more,
    }


def start(folder: Path, mode: str, **environment: str) -> subprocess.Popen[str]:
    """One task of a job whose program is a probe."""
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "probe.py").write_text(PROBE)
    record = submission(folder / "run")
    write_submission(replace(record, command=("probe", mode, str(folder)), workdir=folder))
    return subprocess.Popen(
        [sys.executable, "-c", TASK, str(folder / "run")],
        env={**os.environ, **srun_environment(), "PYTHONPATH": f"{ROOT}:{folder / 'code'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def end_of(folder: Path, attempt: str = "17.0") -> RankEnd:
    job_id, _, restart = attempt.partition(".")
    (end,) = read_ends(attempt_folder(folder / "run", job_id, int(restart)))
    return end


def test_a_task_runs_its_rank_of_the_program_where_the_user_was(tmp_path: Path) -> None:
    environment = srun_environment(SLURM_RESTART_COUNT="2", MIRADA_FIRST_NODE="10.0.0.9")
    task = start(tmp_path, "works", **environment)
    printed = task.communicate(timeout=180)[0]
    assert (task.returncode, printed) == (0, "done\n")
    seen = json.loads((tmp_path / "rank0.json").read_text())
    assert seen["cwd"] == str(tmp_path)
    assert seen["environment"]["MASTER_ADDR"] == "10.0.0.9"
    assert str(ROOT) in seen["path"][:2]
    end = end_of(tmp_path, "17.2")
    assert (end.code, end.last_line, end.node, end.rank, end.num_ranks) == (0, "done", "n1", 0, 1)


def test_a_failure_ends_the_task_with_its_code_and_is_recorded_with_its_last_line(tmp_path: Path) -> None:
    task = start(tmp_path, "fails")
    printed = task.communicate(timeout=180)[0]
    assert task.returncode == 1 and "ValueError: too bad" in printed
    assert (end_of(tmp_path).code, end_of(tmp_path).last_line) == (1, "ValueError: too bad")


def test_a_program_that_saved_and_stopped_is_no_failure_of_the_step(tmp_path: Path) -> None:
    task = start(tmp_path, "saves")
    wait_for((tmp_path / "rank0.json").exists, task)
    task.send_signal(signal.SIGUSR2)
    printed = task.communicate(timeout=180)[0]
    assert (task.returncode, printed) == (0, "saved\n")
    assert end_of(tmp_path).code == 75


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_before_the_program_can_save_is_a_stop_too(tmp_path: Path, number: signal.Signals) -> None:
    """Its imports take seconds, in which the signal's default action ends it: nothing is lost."""
    task = start(tmp_path, "sleeps")
    wait_for((tmp_path / "rank0.json").exists, task)
    task.send_signal(number)
    task.communicate(timeout=180)
    assert task.returncode == 0
    assert end_of(tmp_path).code == 75


def test_a_program_that_was_killed_is_a_failure(tmp_path: Path) -> None:
    task = start(tmp_path, "sleeps")
    wait_for((tmp_path / "rank0.json").exists, task)
    (child,) = Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    task.communicate(timeout=180)
    assert task.returncode == 137 and end_of(tmp_path).code == 137


def test_a_rank_that_failed_lets_the_others_tell_their_ends_first(tmp_path: Path) -> None:
    """SLURM kills the whole step as soon as one task exits with a failure."""
    environment = srun_environment(rank=0, num_ranks=2, num_nodes=2)
    task = start(tmp_path, "fails", **environment)
    folder = attempt_folder(tmp_path / "run", "17", 0)
    wait_for((folder / "rank_0.json").exists, task)
    assert task.poll() is None
    (folder / "rank_1.json").write_text("{}")
    task.communicate(timeout=180)
    assert task.returncode == 1


def test_a_node_that_does_not_see_the_working_directory_says_so(tmp_path: Path) -> None:
    record = replace(submission(tmp_path / "run"), workdir=tmp_path / "gone")
    write_submission(record)
    result = subprocess.run(
        [sys.executable, "-c", TASK, str(tmp_path / "run")],
        env={**os.environ, **srun_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"node n1 does not see '{tmp_path}/gone', where the job was submitted" in result.stderr
    assert end_of(tmp_path).code == 2


def test_a_task_of_an_array_is_named_as_squeue_names_it() -> None:
    place = Place.of(
        srun_environment(rank=3, num_ranks=8, num_nodes=2, SLURM_ARRAY_JOB_ID="15", SLURM_ARRAY_TASK_ID="4")
    )
    assert (place.job_id, place.restart, place.rank, place.num_local_ranks, place.node) == (
        "15_4",
        0,
        3,
        4,
        "n4",
    )


def test_the_environment_of_a_rank_is_torchruns_and_the_users_settings_stay(tmp_path: Path) -> None:
    cluster = submission(tmp_path).cluster.model_copy(update={"cpus_per_task": 7, "gpus_per_node": 0})
    record = replace(submission(tmp_path), cluster=cluster)
    place = Place.of(srun_environment(rank=5, num_ranks=8, num_nodes=2, SLURM_LOCALID="1"))
    meeting = Meeting(address="a", port=1)
    found = rank_environment({"X": "1"}, record, place, meeting)
    wanted = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    wanted |= {
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
        "OMP_NUM_THREADS": "7",
        "DS_ACCELERATOR": "cpu",
        "X": "1",
    }
    assert wanted.items() <= found.items()
    mine = {"OMP_NUM_THREADS": "2", "DS_ACCELERATOR": "cuda"}
    assert mine.items() <= rank_environment(mine, record, place, meeting).items()
