"""MlflowRun: a run's events as one MLflow run: points, params, tags, data sets, status, files, links to its teacher.

MLflow keeps every point for good, so each (name, step) is sent once: what a rollback undid before it was sent never
goes out, what went out stays as it was, and steps that come again are left out where MLflow has them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.tracking.log_reader import STATUS, Event, points_of
from engine.tracking.mlflow_form import (
    RUN_ID_TAG,
    TAG_CHARS,
    allowed_name,
    datasets_of,
    milliseconds,
    origin_tags,
    params_of,
    tags_of,
    text_of,
)
from engine.tracking.mlflow_parent import PARENT_TAG, find_parent, update_parent
from engine.tracking.mlflow_registry import TOP1_TAG, register
from engine.tracking.mlflow_store import complaints, environment, experiment_id, find_run, schema_lock

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

_MLFLOW_TIMEOUT_S = 120  # its own default
_UPLOAD_BYTES_PER_S = 1e6
"""A server that is slower than this with a file, after its usual time for an answer, is taken for one that hangs."""


class MlflowRun:
    """The one MLflow run of a run folder, found again by a tag that holds our run id."""

    def __init__(self, event: Event, run_dir: Path, uri: str) -> None:
        from mlflow import MlflowClient

        self._uri = uri
        self._config = event.get("config", {})
        with complaints(uri), schema_lock(uri):
            self._client = MlflowClient(tracking_uri=uri)
            run = self._find_or_create(event, run_dir)
            self._parent = find_parent(self._client, self._config.get("tracking.parent"), run)
            self._link_to_origins(event, run)
            self._update_parent()
        self._id: str = run.info.run_id
        self.place = f"{uri} {self._id}"
        self._status: str = run.info.status
        self._params: dict[str, str] = dict(run.data.params)
        # The server's memory makes sending twice harmless: what it has is not sent again.
        self._last_steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._steps: dict[str, set[int]] = {}
        """All steps that the server has, of those names whose steps came again."""

    def send(self, events: Sequence[Event]) -> None:
        """Sends a piece of the log; what the server has already is left out."""
        from mlflow.entities import Param, RunTag

        params, tags = self._new_params(events)
        tags |= {key: text for event in events for key, text in tags_of(event).items()}
        with complaints(self._uri):
            self._client.log_batch(
                self._id,
                self._new_points(events),
                [Param(*item) for item in params.items()],
                [RunTag(*item) for item in tags.items()],
            )
            self._send_datasets(events)
            self._send_status(events)
        self._params |= params

    def upload(self, path: Path, folder: str) -> None:
        """Stores a file as an artifact of the run."""
        usual_s = int(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", _MLFLOW_TIMEOUT_S))
        patience_s = usual_s + round(path.stat().st_size / _UPLOAD_BYTES_PER_S)
        with complaints(self._uri), environment(MLFLOW_HTTP_REQUEST_TIMEOUT=str(patience_s)):
            self._client.log_artifact(self._id, str(path), None if folder == "." else folder)

    def publish(self, release: Event) -> None:
        """Makes the release a version of the model that tracking.registry names, if it names one."""
        name = self._config.get("tracking.registry")
        if name is None:
            return
        with complaints(self._uri, about=f"registered model {name!r} on"):
            run = self._client.get_run(self._id)
            facts = {key: run.data.tags.get(key) for key in (RUN_ID_TAG, "mirada.data_digest")}
            scores = release.get("scores", {})
            facts[TOP1_TAG] = scores.get("val/top1", scores.get("val/probe_top1"))
            tags = {key: text_of(fact) for key, fact in facts.items() if fact is not None}
            register(self._client, name, run=run, tags=tags)

    def _find_or_create(self, event: Event, run_dir: Path) -> Run:
        experiment = experiment_id(
            self._client, self._config.get("tracking.experiment") or "mirada", self._uri
        )
        run_id = str(event["run_id"])
        known = find_run(self._client, experiment, run_id)
        if known is not None:
            return known
        name = self._config.get("tracking.run_name") or run_dir.resolve().name
        return self._client.create_run(experiment, milliseconds(event), {RUN_ID_TAG: run_id}, run_name=name)

    def _link_to_origins(self, event: Event, run: Run) -> None:
        """Names the runs that teacher and first weights came from; the first that is in this experiment is the parent.

        Asked at each connection, because a teacher may be sent later than its student.
        """
        tags = origin_tags(event)
        if self._parent is not None:
            tags[PARENT_TAG] = self._parent
        for origin in event.get("origins", {}).values():
            parent = None
            if "run_id" in origin:
                parent = find_run(self._client, run.info.experiment_id, origin["run_id"])
            if parent is not None:
                tags.setdefault(PARENT_TAG, parent.info.run_id)
        for key, text in tags.items():
            if run.data.tags.get(key) != text:
                self._client.set_tag(run.info.run_id, key, text)

    def _new_points(self, events: Sequence[Event]) -> list[Metric]:
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for event in events:
            for key, step, value in points_of(event):
                name = allowed_name(key)
                if (name, step) not in new and not self._has(name, step):
                    new[name, step] = Metric(name, value, milliseconds(event), step)
        for name, step in new:
            self._last_steps[name] = max(step, self._last_steps.get(name, -1))
            if name in self._steps:
                self._steps[name].add(step)
        return list(new.values())

    def _has(self, name: str, step: int) -> bool:
        if step > self._last_steps.get(name, -1):
            return False
        if name not in self._steps:
            history = self._client.get_metric_history(self._id, name)
            self._steps[name] = {metric.step for metric in history}
        return step in self._steps[name]

    def _new_params(self, events: Sequence[Event]) -> tuple[dict[str, str], dict[str, str]]:
        """Params that the server lacks; as tags those that changed, because a param is set only once."""
        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for event in events:
            for name, text in params_of(event).items():
                before = (self._params | new).get(name)
                if before is None:
                    new[name] = text
                elif before != text:
                    changed[allowed_name(f"changed.{name}")] = text[:TAG_CHARS]
        return new, changed

    def _send_datasets(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        inputs = []
        for dataset in datasets_of(events):
            context = InputTag(MLFLOW_DATASET_CONTEXT, dataset.pop("context"))
            inputs.append(DatasetInput(Dataset(**dataset), [context]))
        if inputs:
            self._client.log_inputs(self._id, inputs)

    def _send_status(self, events: Sequence[Event]) -> None:
        decisive = [event for event in events if event["kind"] in STATUS]
        status = STATUS[decisive[-1]["kind"]] if decisive else self._status
        if status == self._status:
            return
        if status == "RUNNING":
            self._client.update_run(self._id, status=status)
        else:
            self._client.set_terminated(self._id, status, end_time=milliseconds(decisive[-1]))
        self._status = status
        self._update_parent()

    def _update_parent(self) -> None:
        if self._parent is not None:
            update_parent(self._client, self._parent, self._config["tracking.parent"])
