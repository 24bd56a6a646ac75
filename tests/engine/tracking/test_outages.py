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


@pytest.mark.slow
def test_a_server_that_hangs_dies_fails_and_comes_back_has_everything_once(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    folder = TrackedRun(tmp_path / "run", server.uri)
    folder.start(**{"tracking.registry": "flowers"})
    folder.train(1, 10)
    follower = tracking.start_follower(folder.path)
    assert follower is not None
    wait_for(folder.is_sent, "the first points")

    server.hang()
    sent, before = folder.offset(), warnings(folder)
    folder.train(11, 20)
    wait_for(lambda: warnings(folder) > before, "a warning about a server that hangs")
    assert folder.offset() == sent
    server.go_on()
    # A whole pass, files included: until then what follows is the same outage to it, and no second warning.
    wait_for(lambda: "everything is sent" in read_log(folder), "the points of the time it hung")
    assert folder.is_sent()

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
    assert follower.wait(timeout=180) == 0
    tracking.sync(folder.path)

    assert folder.steps() == list(range(1, TOTAL_STEPS + 1))
    assert folder.run.info.status == "FINISHED"
    version = folder.client.get_model_version_by_alias("flowers", "best")
    assert version.run_id == folder.run.info.run_id
