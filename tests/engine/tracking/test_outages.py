"""One real `mlflow server` and everything that can become of it during a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.tracking import command as tracking
from tests.support.mlflow_server import MlflowServer, answering_500
from tests.support.tracked_run import TrackedRun, wait_for

TOTAL_STEPS = 60


@pytest.fixture
def server(tmp_path: Path, mlflow_manners: None) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def read_log(folder: TrackedRun) -> str:
    return (folder.path / "logs" / "tracking.log").read_text()


def warnings(folder: TrackedRun) -> int:
    return read_log(folder).count("trying again")


def recoveries(folder: TrackedRun) -> int:
    return read_log(folder).count("everything is sent")


def is_at_rest(folder: TrackedRun) -> bool:
    """Whether a whole pass succeeded, files included: until then what follows is the same outage, without a warning."""
    return folder.is_sent() and folder.has_sent("config.yaml") and recoveries(folder) == warnings(folder)


@pytest.mark.slow
def test_a_server_that_hangs_dies_fails_and_comes_back_has_everything_once(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # of the follower
    folder = TrackedRun(tmp_path / "run", server.uri)
    folder.start(**{"tracking.registry": "flowers"})
    folder.train(1, 10)
    follower = tracking.start_follower(folder.path)
    assert follower is not None
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # of what is asked from here
    wait_for(lambda: is_at_rest(folder), "the first points")

    server.hang()
    sent, before = folder.offset(), warnings(folder)
    folder.train(11, 20)
    wait_for(lambda: warnings(folder) > before, "a warning about a server that hangs")
    assert folder.offset() == sent
    server.go_on()
    wait_for(lambda: is_at_rest(folder), "the points of the time it hung")

    before = warnings(folder)
    server.kill()
    folder.train(21, 30)
    wait_for(lambda: warnings(folder) > before, "a warning about a server that refuses")
    with answering_500(server.port) as (_, num_answers):
        folder.train(31, 40)
        wait_for(lambda: num_answers() >= 1, "a request to a server that fails")
    assert not folder.is_sent()
    server.start()
    folder.train(41, TOTAL_STEPS)
    folder.log.append("finished", step=TOTAL_STEPS)
    folder.release(top1=70.0)
    assert follower.wait(timeout=600) == 0
    tracking.sync(folder.path)

    assert folder.steps() == list(range(1, TOTAL_STEPS + 1))
    assert folder.run.info.status == "FINISHED"
    version = folder.client.get_model_version_by_alias("flowers", "best")
    assert version.run_id == folder.run.info.run_id
