"""What an evaluation found, as metrics and files of the MLflow run that made the network, or of a run of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.tracking.mlflow_form import TAG_CHARS, allowed_name
from engine.tracking.mlflow_store import complaints, experiment_id, find_run, schema_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Of one network."""

    name: str
    """Of the run it gets, where none is found for it."""
    experiment: str
    run_id: str | None
    """Ours, of the run that made the network."""
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    files: tuple[Path, ...]


def log_evaluation(uri: str, evaluation: Evaluation) -> str:
    """Logs it and returns server and run; SinkError where the server does not answer.

    A second evaluation adds points: MLflow shows the newest, and keeps the others with their times.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    with complaints(uri), schema_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        run, is_own = _find_or_create(client, uri, evaluation)
        now = int(time.time() * 1000)
        client.log_batch(
            run,
            [Metric(allowed_name(name), value, now, 0) for name, value in evaluation.metrics.items()],
            tags=[RunTag(allowed_name(key), text[:TAG_CHARS]) for key, text in evaluation.tags.items()],
        )
        for file in evaluation.files:
            client.log_artifact(run, str(file), ARTIFACTS)
        if is_own:
            client.set_terminated(run)
    return f"{uri} {run}"


def _find_or_create(client: MlflowClient, uri: str, evaluation: Evaluation) -> tuple[str, bool]:
    experiment = experiment_id(client, evaluation.experiment, uri)
    known = None if evaluation.run_id is None else find_run(client, experiment, evaluation.run_id)
    if known is not None:
        return str(known.info.run_id), False
    created = client.create_run(experiment, run_name=evaluation.name, tags={"mirada.program": "evaluate"})
    return str(created.info.run_id), True
