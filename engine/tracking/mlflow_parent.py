"""The MLflow run that the runs of a sweep or a search are shown below: made by whichever of them comes first."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.base import ConfigError
from engine.tracking.follower import LOCK_NAME, held
from engine.tracking.mlflow_form import RUN_ID_TAG, allowed_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
_FILE = "sweep.json"
"""Written by launch.many.group: run id, name and what varies."""
_RUNNING, _FINISHED = "RUNNING", "FINISHED"


def find_parent(client: MlflowClient, folder: str | None, child: Run) -> str | None:
    """Id of the parent that the sweep in `folder` has in the child's experiment; None where `folder` is None.

    ConfigError where the folder is not that of a sweep. NOTE: the lock keeps two children from making it twice; without
    locks on the file system they could, and would from then on agree on the older one.
    """
    if folder is None:
        return None
    sweep = _read(Path(folder))
    with held(Path(folder) / LOCK_NAME, wait=True):
        wanted = f"tags.`{RUN_ID_TAG}` = '{sweep['run_id']}'"
        experiment = child.info.experiment_id
        known = client.search_runs(
            [experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return str((known[0] if known else _create(client, experiment, sweep)).info.run_id)


def update_parent(client: MlflowClient, parent: str, folder: str) -> None:
    """RUNNING while one of its children is, else FINISHED; to be called when a child has changed.

    By one of the sweep's children at a time: the last to end must not overlook one that begins just then.
    """
    with held(Path(folder) / LOCK_NAME, wait=True):
        run = client.get_run(parent)
        wanted = f"tags.`{PARENT_TAG}` = '{parent}' and attributes.status = '{_RUNNING}'"
        running = client.search_runs([run.info.experiment_id], wanted, max_results=1)
        status = _RUNNING if running else _FINISHED
        if status == run.info.status:
            return
        if status == _RUNNING:
            client.update_run(parent, status=_RUNNING)
        else:
            client.set_terminated(parent, _FINISHED)


def _create(client: MlflowClient, experiment: str, sweep: Mapping[str, Any]) -> Run:
    run = client.create_run(
        experiment,
        int(time.time() * 1000),
        {RUN_ID_TAG: sweep["run_id"], "mirada.program": "sweep"},
        run_name=sweep["name"],
    )
    for key, values in sweep["settings"].items():
        client.log_param(run.info.run_id, allowed_name(key), values)
    return run


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _FILE).read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tracking.parent: {str(folder)!r} is not the folder of a sweep ({error}); leave the key out, "
            "mirada launch sweep sets it"
        ) from None
