"""Tracking against real stores: SQLite for what is sent, `mlflow server` for what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from configs.base import ConfigError
from engine import tracking
from engine.events import EventLog
from engine.follower import STATE_NAME, Follower, follow
from tests.support.mlflow_server import MlflowServer

CONFIG = {
    "model.name": "vit_tiny",
    "optim.lr": 0.001,
    "data.scale": [0.1, 1.0],
    "tracking.experiment": "tests",
}


class RunFolder:
    """A run folder as a training process would fill it."""

    def __init__(self, path: Path, uri: str) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.uri = uri
        self.log = EventLog(path / "events.jsonl")
        (path / "config.yaml").write_text("model: {name: vit_tiny}\n")

    def start(self, **config: object) -> None:
        self.log.append(
            "run",
            run_id=f"id-of-{self.path.name}",
            program="pretrain",
            command="python -m pretrain recipe.yaml",
            config={**CONFIG, "tracking.uri": self.uri, **config},
            world_size=2,
            versions={"torch": "2.14.1"},
            data_digest="5d41402a",
            host="node-1",
            commit="3f9c2ab",
            **{"slurm.job_id": "4711"},
        )

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.log.append(
                "metrics", step=step, images=step * 8, values={"train/loss": 1 / step, "train/lr": 0.1}
            )

    def points(self, key: str = "train/loss") -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.run.info.run_id, key)
        return sorted((metric.step, metric.value) for metric in history)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @property
    def run(self) -> Run:
        experiment = self.client.get_experiment_by_name("tests")
        assert experiment is not None
        (run,) = self.client.search_runs(
            [experiment.experiment_id], f"tags.`{tracking.RUN_ID_TAG}` = 'id-of-{self.path.name}'"
        )
        return run


@pytest.fixture(scope="module", autouse=True)
def _short_timeouts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests, since creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, store: str, request: pytest.FixtureRequest) -> RunFolder:
    return RunFolder(tmp_path / request.node.name, store)


def _wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def _offset(folder: RunFolder) -> int:
    try:
        state: dict[str, Any] = json.loads((folder.path / STATE_NAME).read_text())
    except FileNotFoundError:
        return 0
    return int(state["offset"])


def _is_sent(folder: RunFolder) -> bool:
    return _offset(folder) == (folder.path / "events.jsonl").stat().st_size


@pytest.mark.slow
def test_points_params_tags_status_and_files_arrive(folder: RunFolder) -> None:
    folder.start()
    folder.train(1, 3)
    folder.log.append("evaluation", step=3, values={"val/top1": 71.5})
    folder.log.append("checkpoint", step=3, path="checkpoints/step_3")
    (folder.path / "release").mkdir()
    (folder.path / "release" / "model.safetensors").write_bytes(b"weights")
    folder.log.append("release", path="release")
    folder.log.append("finished", step=3)

    tracking.sync(folder.path)

    run = folder.run
    assert folder.points() == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert folder.points("val/top1") == [(3, 71.5)]
    assert run.data.params["model.name"] == "vit_tiny"
    assert run.data.params["data.scale"] == "[0.1, 1.0]"
    assert run.data.tags["mlflow.source.git.commit"] == "3f9c2ab"
    assert run.data.tags["mirada.data_digest"] == "5d41402a"
    assert run.data.tags["mirada.checkpoint"] == "checkpoints/step_3"
    assert run.data.tags["slurm.job_id"] == "4711"
    assert run.info.run_name == folder.path.name
    assert run.info.status == "FINISHED"
    files = {file.path for file in folder.client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "release"}


def test_points_keep_their_time(folder: RunFolder) -> None:
    folder.start()
    folder.train(1, 1)
    event = json.loads((folder.path / "events.jsonl").read_text().splitlines()[1])

    tracking.sync(folder.path)

    (point,) = folder.client.get_metric_history(folder.run.info.run_id, "train/loss")
    assert point.timestamp == int(event["time"] * 1000)


@pytest.mark.parametrize("forget", ["nothing", "state", "half of the state"])
def test_following_twice_doubles_nothing(folder: RunFolder, forget: str) -> None:
    folder.start()
    folder.train(1, 5)
    tracking.sync(folder.path)
    folder.train(6, 8)
    state = folder.path / STATE_NAME
    if forget == "state":  # killed between sending and writing it down
        state.unlink()
    elif forget == "half of the state":
        state.write_text(state.read_text()[:20])

    tracking.sync(folder.path)
    tracking.sync(folder.path)

    assert [step for step, _ in folder.points()] == list(range(1, 9))


def test_steps_that_a_rollback_repeats_are_sent_once(folder: RunFolder) -> None:
    folder.start()
    folder.train(1, 6)
    tracking.sync(folder.path)
    folder.start()
    folder.log.append("resumed", step=4)
    folder.train(5, 7)

    tracking.sync(folder.path)

    assert [step for step, _ in folder.points()] == list(range(1, 8))


@pytest.mark.parametrize(
    ("kind", "status"), [("finished", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED")]
)
def test_status_follows_the_events_and_a_restart_reopens_the_run(
    folder: RunFolder, kind: str, status: str
) -> None:
    folder.start()
    tracking.sync(folder.path)
    assert folder.run.info.status == "RUNNING"
    folder.log.append(kind, step=1, reason="SIGUSR1", error="boom")
    tracking.sync(folder.path)
    assert folder.run.info.status == status
    folder.start()
    folder.log.append("resumed", step=1)
    tracking.sync(folder.path)
    assert folder.run.info.status == "RUNNING"


def test_a_param_that_changed_since_is_kept_as_a_tag(folder: RunFolder) -> None:
    folder.start()
    tracking.sync(folder.path)
    folder.start(**{"optim.lr": 0.5})

    tracking.sync(folder.path)

    assert folder.run.data.params["optim.lr"] == "0.001"
    assert folder.run.data.tags["changed.optim.lr"] == "0.5"


def test_long_values_odd_names_and_many_points_are_made_to_fit(folder: RunFolder) -> None:
    folder.start(**{"model.args": "x" * 9000, "odd@name": 1})
    folder.log.append("metrics", step=1, values={f"train/part@{i}": float(i) for i in range(1200)})
    folder.log.append("failed", error="y" * 90_000)

    tracking.sync(folder.path)

    run = folder.run
    assert len(run.data.metrics) == 1200
    assert run.data.metrics["train/part_7"] == 7.0
    assert run.data.params["model.args"] == "x" * 6000
    assert run.data.params["odd_name"] == "1"
    assert len(run.data.tags["mirada.error"]) == 5000


def test_a_line_that_is_still_being_written_waits(folder: RunFolder) -> None:
    folder.start()
    folder.train(1, 2)
    log = folder.path / "events.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-10])
    tracking.sync(folder.path)
    assert [step for step, _ in folder.points()] == [1]
    log.write_bytes(whole)

    tracking.sync(folder.path)

    assert [step for step, _ in folder.points()] == [1, 2]


def test_the_default_store_lies_beside_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "runs" / "vit"
    event: dict[str, Any] = {"config": {"tracking.uri": None}}
    assert tracking.tracking_uri(event, run_dir) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    assert tracking.tracking_uri(event, run_dir) == "http://from-environment"
    assert tracking.tracking_uri({"config": {"tracking.uri": "http://recipe"}}, run_dir) == "http://recipe"


def test_off_sends_nothing_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run", "off")
    folder.start()

    assert tracking.start_follower(folder.path) is None
    assert tracking.main([str(folder.path)]) == 0
    assert "nothing is sent" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "events.jsonl", "run"]


def test_a_folder_without_log_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder: it has no events\.jsonl"):
        tracking.sync(tmp_path)


@pytest.fixture(params=["refuses", "answers 500", "hangs"])
def broken_server(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "refuses":
        yield "http://127.0.0.1:9"
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if request.param == "answers 500":
            threading.Thread(target=_answer_500, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _answer_500(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the test is over
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_a_broken_server_is_a_message_that_names_it(
    broken_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder = RunFolder(tmp_path / "run", broken_server)
    folder.start()
    with pytest.raises(
        ConfigError, match=rf"tracking server '{re.escape(broken_server)}'.*\n.*events stay in"
    ):
        tracking.sync(folder.path)
    assert _offset(folder) == 0


def test_the_program_ends_with_code_2_and_no_traceback_when_the_server_is_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "http://127.0.0.1:9")
    folder.start()
    command = [sys.executable, "-m", "engine.tracking", str(folder.path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd())
    assert result.returncode == 2
    assert result.stderr.startswith("error: tracking server 'http://127.0.0.1:9'")
    assert "Traceback" not in result.stderr


def test_a_follower_never_mixes_a_moved_run_with_the_fresh_one_in_its_place(folder: RunFolder) -> None:
    folder.start()
    folder.train(1, 3)
    follower = Follower(folder.path, lambda event: tracking.MlflowRun(event, folder.path))
    follower.send_all()
    folder.path.rename(folder.path.with_name("moved"))
    fresh = RunFolder(folder.path, folder.uri)
    fresh.start()
    fresh.train(1, 90)

    assert not follow(follower, parent=None, grace_s=0.0)

    assert [step for step, _ in folder.points()] == [1, 2, 3]


@pytest.mark.slow
def test_following_a_dead_server_ends_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "run", "http://127.0.0.1:9")
    folder.start()
    folder.log.append("finished", step=1)
    before = (folder.path / "events.jsonl").read_bytes()

    assert not tracking.follow_run(folder.path, grace_s=2.0)

    assert (folder.path / "events.jsonl").read_bytes() == before
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("engine.")]
    assert len([text for text in messages if "trying again" in text]) == 1
    assert f"mirada sync {folder.path}" in messages[-1]


@pytest.mark.slow
def test_a_server_killed_and_restarted_during_the_run_has_everything_once(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "server")
    server.start()
    try:
        folder = RunFolder(tmp_path / "run", server.uri)
        folder.start()
        folder.train(1, 20)
        follower = tracking.start_follower(folder.path)
        assert follower is not None
        _wait_for(lambda: _is_sent(folder), "the first 20 points")
        server.kill()
        sent = _offset(folder)
        folder.train(21, 40)
        log = folder.path / "logs" / "tracking.log"
        _wait_for(lambda: "trying again" in log.read_text(), "a warning")
        assert _offset(folder) == sent
        server.start()
        folder.train(41, 50)
        folder.log.append("finished", step=50)
        folder.log.append("release", path="release")
        assert follower.wait(timeout=180) == 0
        tracking.sync(folder.path)

        assert [step for step, _ in folder.points()] == list(range(1, 51))
        assert folder.run.info.status == "FINISHED"
        assert log.read_text().count("WARNING") == 1
    finally:
        server.kill()


_TRAINING = """
import sys, time
from pathlib import Path
from engine.tracking import start_follower
follower = start_follower(Path(sys.argv[1]))
print(follower.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_follower_of_a_killed_run_sends_the_rest_and_ends(folder: RunFolder) -> None:
    folder.start()
    folder.train(1, 4)
    training = subprocess.Popen(
        [sys.executable, "-c", _TRAINING, str(folder.path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert training.stdout is not None
    follower_pid = int(training.stdout.readline())
    _wait_for(lambda: _is_sent(folder), "the first points")
    os.kill(follower_pid, signal.SIGTERM)  # SLURM signals every process of a job: it must outlive that
    folder.train(5, 9)
    training.kill()
    training.wait()

    _wait_for(lambda: folder.run.info.status == "KILLED", "the status")
    _wait_for(lambda: not _is_running(follower_pid), "the end of the follower")
    assert [step for step, _ in folder.points()] == list(range(1, 10))
    assert folder.run.data.tags["mirada.stopped"] == "the training process vanished"


def _is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_importing_the_module_imports_neither_mlflow_nor_torch() -> None:
    program = (
        "import sys, engine.tracking; sys.exit(bool({'mlflow', 'torch', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path.cwd()).returncode == 0
