"""`mirada sync --watch`: what a login node does for runs whose nodes do not reach the tracking server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.base import ConfigError
from engine.tracking import command as tracking
from tests.support.tracked_run import TrackedRun, wait_for

pytestmark = pytest.mark.slow


@contextmanager
def watching(*folders: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "engine.tracking.command", *map(str, folders), "--watch"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd(), env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_watching_begins_before_the_run_does_and_lasts_over_its_restarts(folder: TrackedRun) -> None:
    with watching(folder.path) as watch:
        folder.start()
        folder.train(1, 4)
        folder.log.append("stopped", step=4, reason="SIGUSR2")
        wait_for(folder.is_sent, "the first start")
        wait_for(lambda: folder.run.info.status == "KILLED", "the stop")
        assert watch.poll() is None

        folder.start()
        folder.log.append("resumed", step=4)
        folder.train(5, 9)
        folder.log.append("finished", step=9)
        wait_for(folder.is_sent, "the second start")
        assert watch.poll() is None  # the weights are still being written
        folder.release()

        assert watch.wait(timeout=600) == 0
        assert watch.stdout is not None
        assert f"{folder.path}: finished, everything is sent\n" in watch.stdout.read()
    assert folder.steps() == list(range(1, 10))
    assert folder.run.info.status == "FINISHED"
    assert folder.has_sent("release/model.safetensors")


def test_a_follower_on_a_node_without_network_does_not_keep_the_login_node_from_sending(
    folder: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder.uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    folder.start(**{"tracking.uri": None})
    follower = tracking.start_follower(folder.path)
    assert follower is not None
    try:
        wait_for(lambda: "trying again" in read_log(folder), "the follower's failure")
        with pytest.raises(ConfigError, match="is being followed right now"):
            tracking.sync(folder.path)
        with watching(folder.path, MLFLOW_TRACKING_URI=store) as watch:
            folder.train(1, 5)
            wait_for(folder.is_sent, "the points")
            folder.log.append("finished", step=5)
            folder.release()
            assert watch.wait(timeout=600) == 0
    finally:
        follower.kill()
        follower.wait()
    assert folder.steps() == [1, 2, 3, 4, 5]


def test_a_login_node_and_a_node_with_network_together_send_everything_once(folder: TrackedRun) -> None:
    folder.start()
    follower = tracking.start_follower(folder.path)
    assert follower is not None
    with watching(folder.path) as watch:
        for step in range(1, 40):
            folder.train(step, step)
        folder.log.append("resumed", step=20)
        folder.train(21, 60)
        folder.log.append("finished", step=60)
        folder.release()
        assert watch.wait(timeout=600) == 0
    assert follower.wait(timeout=600) == 0
    assert folder.steps() == list(range(1, 61))


def test_a_folder_that_does_not_exist_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        tracking.watch([tmp_path, tmp_path / "nowhere"])


def read_log(folder: TrackedRun) -> str:
    path = folder.path / "logs" / "tracking.log"
    return path.read_text() if path.exists() else ""
