"""Cancelling and requeueing runs of this machine, which no SLURM knows."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.base import ConfigError
from engine.events import EventLog
from launch.following.cancel import cancel
from launch.following.event_tail import LOG_NAME
from launch.following.requeue import requeue
from launch.following.run_state import RunState, RunWatch

HOLDER = """
import fcntl, json, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
lock = open(folder / ".lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)

def stop(number, frame):
    with (folder / "events.jsonl").open("a") as log:
        for event in ({"kind": "checkpoint", "step": 7}, {"kind": "stopped", "step": 7, "reason": "SIGUSR2"}):
            log.write(json.dumps({"time": time.time(), **event}) + "\\n")
    sys.exit(75)

signal.signal(signal.SIGUSR2, stop)
print("held", flush=True)
time.sleep(600)
"""
"""Holds a run folder and answers a signal as a training program does (engine.run_folder, engine.survival.preempt)."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    EventLog(tmp_path / LOG_NAME).append(
        "run", total_steps=9, host=socket.gethostname(), command="mirada pretrain x.yaml --out here"
    )
    return tmp_path


@pytest.fixture
def trainer(run: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_local_run_saves_and_ends(
    run: Path, trainer: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cancel([run], save=True) == 0
    assert trainer.wait(timeout=60) == 75
    assert capsys.readouterr().out == f"{run}: stopped; saved after step 7\n"
    assert cancel([run], save=True) == 0
    assert capsys.readouterr().out == f"{run}: is stopped already\n"


def test_a_local_run_can_be_ended_without_saving(run: Path, trainer: subprocess.Popen[str]) -> None:
    assert cancel([run], save=False) == 0
    assert trainer.wait(timeout=60) == -9
    assert RunWatch([run]).look()[0].state == "vanished"


def test_a_run_of_another_machine_is_refused_before_anything_is_stopped(
    run: Path, trainer: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    EventLog(other / LOG_NAME).append("run", total_steps=9, host="elsewhere")
    with pytest.raises(ConfigError, match=r"none of its processes is on this machine: run this on elsewhere"):
        cancel([run, other], save=True)
    assert trainer.poll() is None


def test_a_run_that_ends_just_before_it_is_asked_to_stop_is_told_as_it_ended(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holders = iter([ended.pid])
    monkeypatch.setattr("launch.following.run_state.training_process", lambda folder: next(holders, 0))
    look = RunWatch.look

    def look_and_end(watch: RunWatch) -> list[RunState]:
        states = look(watch)
        EventLog(run / LOG_NAME).append("finished", step=9)
        return states

    monkeypatch.setattr(RunWatch, "look", look_and_end)
    assert cancel([run], save=True) == 0
    assert capsys.readouterr().out == f"{run}: finished; without a release\n"


def test_a_local_run_is_not_requeued_but_typed_again(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"run it again: mirada pretrain x\.yaml --out here"):
        requeue([run])
