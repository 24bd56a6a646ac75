"""One world of one rank for all tests of the engine, since a process joins its group once; and one MLflow store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.world import World, close_world, init_world
from tests.support.tracked_run import TrackedRun


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """This process alone, with a real process group for DeepSpeed; other tests' programs must not inherit its rank."""
    environment = dict(os.environ)
    alone = init_world()
    os.environ.clear()
    os.environ.update(environment)
    yield alone
    close_world()


@pytest.fixture(scope="session")
def mlflow_manners() -> Iterator[None]:
    """Requests that fail soon, and no telemetry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def mlflow_store(mlflow_manners: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests, since creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, mlflow_store: str, request: pytest.FixtureRequest) -> TrackedRun:
    """The folder of a run that is tracked in that store."""
    return TrackedRun(tmp_path / request.node.name, mlflow_store)
