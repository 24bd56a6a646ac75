"""Following a run and sending what is left: processes, places, servers that are away."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.base import ConfigError
from engine.tracking import command as tracking
from engine.tracking.follower import TRAINING_LOCK_NAME, Follower, follow
from engine.tracking.mlflow_run import MlflowRun
from tests.support.mlflow_server import answering_500
from tests.support.tracked_run import TrackedRun, wait_for


def test_the_default_store_lies_beside_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "runs" / "vit"
    event: dict[str, Any] = {"config": {"tracking.uri": None}}
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.tracking_uri(event, run_dir) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    assert tracking.tracking_uri(event, run_dir) == "http://from-environment"
    assert tracking.tracking_uri({"config": {"tracking.uri": "http://recipe"}}, run_dir) == "http://recipe"


def test_off_sends_nothing_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = TrackedRun(tmp_path / "run", "off")
    folder.start()

    assert tracking.start_follower(folder.path) is None
    assert tracking.main([str(folder.path)]) == 0
    assert "nothing is sent" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "events.jsonl", "run"]


def test_a_folder_without_log_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder: it has no events\.jsonl"):
        tracking.sync(tmp_path)


@pytest.fixture(params=["refuses", "answers 500", "hangs"])
def broken_server(request: pytest.FixtureRequest, mlflow_manners: None) -> Iterator[str]:
    if request.param == "refuses":
        yield "http://127.0.0.1:9"
        return
    if request.param == "answers 500":
        with answering_500() as (port, _):
            yield f"http://127.0.0.1:{port}"
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_broken_server_is_a_message_that_names_it_and_tensorboard_has_all(
    broken_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder = TrackedRun(tmp_path / "run", broken_server)
    folder.start(**{"tracking.tensorboard": True})
    with pytest.raises(
        ConfigError, match=rf"tracking server '{re.escape(broken_server)}'.*\n.*events stay in"
    ):
        tracking.sync(folder.path)
    assert folder.offset() == 0
    assert folder.offset("tensorboard.json") == (folder.path / "events.jsonl").stat().st_size


def test_the_program_ends_with_code_2_and_no_traceback_when_the_server_is_away(tmp_path: Path) -> None:
    folder = TrackedRun(tmp_path / "run", "http://127.0.0.1:9")
    folder.start()
    command = [sys.executable, "-m", "engine.tracking.command", str(folder.path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd())
    assert result.returncode == 2
    assert result.stderr.startswith("error: tracking server 'http://127.0.0.1:9'")
    assert "Traceback" not in result.stderr


def test_a_follower_never_mixes_a_moved_run_with_the_fresh_one_in_its_place(folder: TrackedRun) -> None:
    folder.start()
    folder.train(1, 3)
    follower = Follower(folder.path, lambda event: MlflowRun(event, folder.path, folder.uri))
    follower.send_all()
    folder.path.rename(folder.path.with_name("moved"))
    fresh = TrackedRun(folder.path, folder.uri)
    fresh.start()
    fresh.train(1, 90)

    assert not follow(follower, parent=None, grace_s=0.0)

    assert folder.steps() == [1, 2, 3]


def test_a_run_is_not_complete_before_its_weights_are_sent_as_well(folder: TrackedRun) -> None:
    follower = Follower(folder.path, lambda event: MlflowRun(event, folder.path, folder.uri))
    folder.start()
    folder.log.append("finished", step=1)
    follower.send_all()
    assert not follower.is_complete()
    folder.release()  # just after the log was read for the last time
    assert not follower.is_complete()
    follower.send_all()
    assert follower.is_complete() and folder.has_sent("release/model.safetensors")


@pytest.mark.slow
def test_following_a_dead_server_ends_with_one_warning(
    tmp_path: Path, mlflow_manners: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = TrackedRun(tmp_path / "run", "http://127.0.0.1:9")
    folder.start()
    folder.log.append("finished", step=1)
    before = (folder.path / "events.jsonl").read_bytes()

    assert not tracking.follow_run(folder.path, grace_s=2.0)

    assert (folder.path / "events.jsonl").read_bytes() == before
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("engine.")]
    assert len([text for text in messages if "trying again" in text]) == 1
    assert f"mirada sync {folder.path}" in messages[-1]


_TRAINING = """
import sys, time
from pathlib import Path
from engine.tracking.command import start_follower
follower = start_follower(Path(sys.argv[1]))
print(follower.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_follower_of_a_killed_run_sends_the_rest_and_ends(folder: TrackedRun) -> None:
    folder.start()
    folder.train(1, 4)
    training = subprocess.Popen(
        [sys.executable, "-c", _TRAINING, str(folder.path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert training.stdout is not None
    follower_pid = int(training.stdout.readline())
    wait_for(folder.is_sent, "the first points")
    os.kill(follower_pid, signal.SIGTERM)  # SLURM signals every process of a job: it must outlive that
    folder.train(5, 9)
    training.kill()
    training.wait()

    wait_for(lambda: folder.run.info.status == "KILLED", "the status")
    wait_for(lambda: not _is_running(follower_pid), "the end of the follower")
    assert folder.steps() == list(range(1, 10))
    assert folder.run.data.tags["mirada.stopped"] == "the training process vanished"


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


_HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("host", ["this", "another"])
def test_sync_marks_a_run_as_killed_that_nobody_trains_any_more(
    folder: TrackedRun, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host == "this":
        monkeypatch.setattr(socket, "gethostname", lambda: "node-1")
    folder.start()
    folder.train(1, 2)
    lock = folder.path / TRAINING_LOCK_NAME
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    tracking.sync(folder.path)
    assert folder.run.info.status == "RUNNING"
    holder.kill()
    holder.wait()

    tracking.sync(folder.path)

    # Of a run on another host that still wrote a moment ago, a free lock proves nothing.
    assert folder.run.info.status == ("KILLED" if host == "this" else "RUNNING")
    log = folder.path / "events.jsonl"
    os.utime(log, (log.stat().st_atime, log.stat().st_mtime - 3600))
    tracking.sync(folder.path)
    assert folder.run.info.status == "KILLED"
    with lock.open("r+b") as file:  # asking took nothing away from the next start
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_importing_the_module_imports_neither_mlflow_nor_torch() -> None:
    program = (
        "import sys, engine.tracking.command; "
        "sys.exit(bool({'mlflow', 'torch', 'deepspeed', 'tensorboard'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path.cwd()).returncode == 0
