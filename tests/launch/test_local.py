"""Local ranks: their environment, and that they end together however the end comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import local
from launch.local import count_ranks, is_inside_job, rank_environment
from launch.supervise import Command, run_together

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0

PROBE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
mode, folder, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK"]
if mode == "deaf":
    signal.signal(signal.SIGINT, lambda *_: (folder / "interrupted").touch())
if mode in ("deaf", "mistaken"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "saves":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if mode == "tells":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(10 + int(rank)))
print("rank", rank, "says hello", flush=True)
child = None if mode == "ends" else subprocess.Popen(["sleep", "600"])
try:
    (folder / "new").with_suffix("." + rank).write_text(json.dumps(
        {"pids": [os.getpid(), *([child.pid] if child else [])], "environment": dict(os.environ), "path": sys.path}))
    (folder / "new").with_suffix("." + rank).rename(folder / f"rank{rank}.json")
    if mode == "ends":
        sys.exit(0)
    if mode in ("mistaken", "fails"):
        while not all((folder / f"rank{other}.json").exists() for other in (0, 1)):
            time.sleep(0.01)
    if mode == "mistaken":
        print("error: no such key", file=sys.stderr)
        sys.exit(2)
    if mode == "fails" and rank == "1":
        sys.exit(3)
    while True:
        time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
"""

DRIVER = """
import sys
from pathlib import Path
from launch.local import run_ranks
mode, folder = sys.argv[1:]
grace_s, out = 0.5 if mode == "deaf" else 60.0, Path(folder) / "run"
sys.exit(run_ranks("probe", [mode, folder], num_ranks=2, out=out, again="mirada probe", grace_s=grace_s))
"""


class Launch:
    """A launcher of two probes in a process of its own."""

    def __init__(self, mode: str, folder: Path) -> None:
        (folder / "probe.py").write_text(PROBE)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, mode, str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that starts us in the background ignores Ctrl-C for us, and for all we start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def ranks(self) -> list[dict[str, object]]:
        """What both ranks reported, once both have."""
        files = [self.folder / f"rank{rank}.json" for rank in range(2)]
        wait_until(lambda: all(file.exists() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def pids(self) -> list[int]:
        return [pid for report in self.ranks() for pid in report["pids"]]  # type: ignore[attr-defined]

    def end(self) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        output, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, output, errors


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[str], Launch]]:
    started: list[Launch] = []

    def start(mode: str) -> Launch:
        started.append(Launch(mode, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_ranks_get_what_torchrun_would_give_them(launch: Callable[[str], Launch]) -> None:
    started = launch("ends")
    first, second = (report["environment"] for report in started.ranks())
    assert started.end() == (0, "rank 0 says hello\n", "")
    assert (first["RANK"], first["LOCAL_RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "0", "1", "1")
    assert first["WORLD_SIZE"] == second["LOCAL_WORLD_SIZE"] == "2"
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == ("127.0.0.1", second["MASTER_PORT"])
    assert first["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_ranks_meet_at_a_port_that_the_system_hands_out_to_nobody(launch: Callable[[str], Launch]) -> None:
    """Rank 0 listens there seconds later, when it has imported torch."""
    first, _ = (report["environment"] for report in launch("ends").ranks())
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert int(first["MASTER_PORT"]) < int(handed_out[0])


def test_a_failing_rank_ends_the_others_and_its_code_is_returned(launch: Callable[[str], Launch]) -> None:
    started = launch("fails")
    pids = started.pids()
    code, _, errors = started.end()
    assert code == 3
    assert "rank 1 ended with exit code 3" in errors and "rank 1 says hello" in errors
    # The ranks' children were killed too, but the kernel ends them when it comes to that.
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_mistake_that_every_rank_finds_is_told_once(launch: Callable[[str], Launch]) -> None:
    code, _, errors = launch("mistaken").end()
    assert (code, errors) == (2, "error: no such key\n")


def test_ctrl_c_reaches_every_rank_and_says_how_to_resume(launch: Callable[[str], Launch]) -> None:
    started = launch("waits")
    pids = started.pids()
    started.process.send_signal(signal.SIGINT)
    code, _, errors = started.end()
    assert code == 130
    assert errors == "interrupted; next start resumes: mirada probe\n"
    wait_until(lambda: not any(map(is_alive, pids)))


def test_ranks_that_save_and_stop_on_sigterm_are_no_failure(launch: Callable[[str], Launch]) -> None:
    started = launch("saves")
    started.ranks()
    started.process.send_signal(signal.SIGTERM)
    code, _, errors = started.end()
    assert code == 75
    assert errors == "stopped; next start resumes: mirada probe\n"


def test_user_signals_are_passed_on(launch: Callable[[str], Launch]) -> None:
    started = launch("tells")
    started.ranks()
    started.process.send_signal(signal.SIGUSR1)
    assert started.end()[0] in (10, 11)


def test_a_signal_that_came_just_before_the_ranks_began_is_passed_on() -> None:
    sleeper = Command(arguments=["sleep", "600"], environment=os.environ)
    outcome = run_together([sleeper], received=[signal.SIGUSR2])
    assert (outcome.code, outcome.signals) == (128 + signal.SIGUSR2, [signal.SIGUSR2])


def test_ranks_deaf_to_signals_are_killed_after_the_second_ctrl_c(launch: Callable[[str], Launch]) -> None:
    started = launch("deaf")
    pids = started.pids()
    started.process.send_signal(signal.SIGINT)
    wait_until((started.folder / "interrupted").exists)
    started.process.send_signal(signal.SIGINT)
    assert started.end()[0] == 130
    wait_until(lambda: not any(map(is_alive, pids)))


def test_kill_9_of_the_launcher_ends_its_ranks(launch: Callable[[str], Launch]) -> None:
    started = launch("deaf")
    ranks = [report["pids"][0] for report in started.ranks()]  # type: ignore[index]
    children = [pid for pid in started.pids() if pid not in ranks]
    started.process.kill()
    try:
        wait_until(lambda: not any(map(is_alive, ranks)))
    finally:
        for (
            pid
        ) in children:  # the kernel's promise covers the ranks; a loader's worker watches its parent itself
            os.kill(pid, signal.SIGKILL)


def test_settings_of_the_user_win_over_defaults() -> None:
    made = rank_environment(
        {"OMP_NUM_THREADS": "7", "DS_ACCELERATOR": "xpu"}, rank=1, num_ranks=2, port=5, has_gpu=False
    )
    assert (made["OMP_NUM_THREADS"], made["DS_ACCELERATOR"]) == ("7", "xpu")


def test_cores_are_divided_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    threads = [
        rank_environment({}, rank=0, num_ranks=n, port=5, has_gpu=False)["OMP_NUM_THREADS"]
        for n in (1, 3, 8, 9)
    ]
    assert threads == ["8", "2", "1", "1"]


@pytest.mark.parametrize(("cores", "ranks"), [(1, 1), (2, 2), (3, 2), (64, 2)])
def test_auto_is_a_rank_per_core_up_to_two_without_gpus(
    cores: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert count_ranks("auto") == ranks
    assert count_ranks(5) == 5


@pytest.mark.parametrize(
    ("visible", "num_gpus"), [(None, 3), ("", 0), ("-1", 0), ("2", 1), ("0,2", 2), ("GPU-abc,GPU-def", 2)]
)
def test_gpus_are_those_that_cuda_visible_devices_leaves(
    visible: str | None, num_gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor i in 0 1 2; do echo "GPU $i: NVIDIA (UUID: GPU-$i)"; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert local.count_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == num_gpus


@pytest.mark.parametrize(
    ("environment", "inside"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, False),  # the batch script itself, outside srun
    ],
)
def test_a_rank_of_torchrun_or_srun_knows_that_it_is_one(environment: dict[str, str], inside: bool) -> None:
    assert is_inside_job(environment) is inside


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody reaps does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
