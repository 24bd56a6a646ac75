"""MLflow's back ends and their manners: where artifacts lie, what errors look like, which of them race."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.tracking.follower import SinkError, held
from engine.tracking.mlflow_form import RUN_ID_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The experiment of this name, made where there is none; SinkError if it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri)))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run may have been faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise SinkError(
            f"experiment {name!r} was deleted on {uri!r}: restore it there, or choose tracking.experiment"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, experiment: str, run_id: str) -> Run | None:
    """MLflow's run of a run of ours, found by its tag; None where it was never sent to this experiment."""
    known = client.search_runs([experiment], f"tags.`{RUN_ID_TAG}` = '{run_id}'", max_results=1)
    return known[0] if known else None


@contextlib.contextmanager
def complaints(uri: str, *, about: str = "tracking server") -> Iterator[None]:
    """Whatever the back end raises becomes one kind of error, with one line that names the server."""
    from mlflow.exceptions import MlflowException

    kinds: tuple[type[Exception], ...] = (MlflowException, OSError)  # OSError includes those of requests
    with contextlib.suppress(ImportError):  # mlflow-skinny has no database
        from sqlalchemy.exc import SQLAlchemyError

        kinds = (*kinds, SQLAlchemyError)
    try:
        yield
    except kinds as failure:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise SinkError(f"{about} {uri!r}: {reason[:400]}") from failure


@contextlib.contextmanager
def schema_lock(uri: str) -> Iterator[None]:
    """Lets one process at a time create the tables of a local database: MLflow's migrations race."""
    database = _database_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with held(database.with_name(f".{database.name}.lock"), wait=True):
        yield


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables that MLflow reads at each request, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _artifact_location(uri: str) -> str | None:
    """Beside a local database; a server knows itself. MLflow's own default is ./mlruns, wherever that is."""
    database = _database_file(uri)
    return None if database is None else str(database.parent / "mlartifacts")


def _database_file(uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).resolve() if uri.startswith(prefix) else None
