"""A comparison into MLflow: each network to the run that made it, else to a run of its own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from configs.base import ConfigError
from engine.results.release import run_of_release
from engine.tracking.command import OFF, quiet_mlflow, tracking_uri
from engine.tracking.follower import SinkError
from engine.tracking.log_reader import LOG_NAME, newest_run_event
from engine.tracking.mlflow_evaluation import Evaluation, log_evaluation
from finetune.evaluating.comparison import Comparison, Row

_PREFIX = "evaluate"


def track(comparison: Comparison, pictures: Mapping[str, Path]) -> Iterator[str]:
    """Logs every row and says where each went; ConfigError where a server cannot be reached."""
    quiet_mlflow()
    for row in comparison.rows:
        uri, experiment = tracking_place(row.path)
        with tempfile.TemporaryDirectory() as folder:
            numbers = Path(folder) / f"{_slug(row.name)}.json"
            numbers.write_text(json.dumps({"data": comparison.data, **asdict(row)}, indent=1) + "\n")
            evaluation = Evaluation(
                name=f"{_PREFIX} {row.name}",
                experiment=experiment,
                run_id=_maker(row.path),
                metrics=metrics_of(row),
                tags={
                    f"mirada.{_PREFIX}.data": comparison.data,
                    f"mirada.{_PREFIX}.data_digest": comparison.data_digest,
                    f"mirada.{_PREFIX}.checkpoint": row.path,
                },
                files=(numbers, *pictures.values()),
            )
            try:
                place = log_evaluation(uri, evaluation)
            except SinkError as failure:
                raise ConfigError(
                    f"{failure}; start the server, or set MLFLOW_TRACKING_URI, and evaluate again"
                ) from failure
        yield f"{row.name}: logged to {place}"


def metrics_of(row: Row) -> dict[str, float]:
    """By the names they have in MLflow."""
    numbers: dict[str, float | None] = {
        name: getattr(row, name)
        for name in ("top1", "top5", "ece", "latency_ms", "images_per_s", "corrupted_top1")
    }
    for name, severities in row.corruptions.items():
        numbers[f"corrupted_top1/{name}"] = sum(severities) / len(severities)
    return {f"{_PREFIX}/{name}": number for name, number in numbers.items() if number is not None}


def tracking_place(reference: str) -> tuple[str, str]:
    """Where the runs of a checkpoint are tracked: address and experiment."""
    run_dir = run_folder_of(reference)
    event = None if run_dir is None else newest_run_event(run_dir)
    experiment = (event or {}).get("config", {}).get("tracking.experiment") or "mirada"
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if event is not None and run_dir is not None and tracking_uri(event, run_dir) != OFF:
        uri = tracking_uri(event, run_dir)
    if uri is None:
        raise ConfigError(
            f"{reference!r} does not say where MLflow is: it lies in no run folder, or its run was tracked nowhere; "
            "set MLFLOW_TRACKING_URI, to sqlite:///mlflow.db for example"
        )
    return uri, str(experiment)


def run_folder_of(reference: str) -> Path | None:
    """The run folder that a reference names, or in whose `release` it points; None for anything else."""
    folder = Path(reference.removeprefix("local-dir:")).expanduser()
    for path in (folder, folder.parent):
        if folder.is_dir() and (path / LOG_NAME).is_file():
            return path
    return None


def _maker(reference: str) -> str | None:
    return None if reference.endswith(".onnx") else run_of_release(reference)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)
