"""A release as an MLflow model (pyfunc), and as a version of a registered model under an alias."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.tracking.mlflow_form import TAG_CHARS, allowed_name
from engine.tracking.mlflow_registry import create_model
from engine.tracking.mlflow_store import complaints, experiment_id, find_run, schema_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIASES = ("teacher", "student")
RELEASE_IN_MODEL = "artifacts/release"
"""Where a model folder has the release."""

_CODE = Path(__file__).with_name("mlflow_predictor.py")
_REQUIREMENTS = ("mlflow", "torch", "timm", "safetensors", "numpy")
_ARTIFACTS = "model"


def save_pyfunc(release: Path, folder: Path, *, channels: int, num_classes: int) -> None:
    """Writes a model folder around a release: its files, a Python file that loads them, nothing pickled."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, channels))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no example of an input
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(_CODE),
            artifacts={"release": str(release)},
            signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS],
        )


def register_pyfunc(
    folder: Path,
    uri: str,
    *,
    experiment: str,
    run_id: str | None,
    name: str,
    alias: str,
    tags: Mapping[str, str],
) -> str:
    """Stores a model folder with the run that made it, as a new version of `name` that `alias` points to."""
    from mlflow import MlflowClient

    with complaints(uri), schema_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        run, artifact_uri = _run_for(client, experiment_id(client, experiment, uri), run_id, name)
        client.log_artifacts(run, str(folder), _ARTIFACTS)
    with complaints(uri, about=f"registered model {name!r} on"):
        create_model(client, name)
        known = {allowed_name(key): text[:TAG_CHARS] for key, text in tags.items()}
        version = client.create_model_version(name, f"{artifact_uri}/{_ARTIFACTS}", run_id=run, tags=known)
        client.set_registered_model_alias(name, alias, version.version)
    return f"models:/{name}@{alias}, version {version.version} on {uri}"


def _run_for(client: MlflowClient, experiment: str, run_id: str | None, name: str) -> tuple[str, str]:
    """MLflow's id and artifacts of the run that made the network, or of a new one."""
    known = None if run_id is None else find_run(client, experiment, run_id)
    if known is None:
        known = client.create_run(experiment, run_name=f"export {name}", tags={"mirada.program": "export"})
        client.set_terminated(known.info.run_id)
    return str(known.info.run_id), str(known.info.artifact_uri)
