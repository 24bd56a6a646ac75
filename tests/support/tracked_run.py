"""A run folder as a training process fills it, and what MLflow says of the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.events import EventLog
from engine.tracking.follower import STATE_NAME
from engine.tracking.mlflow_form import RUN_ID_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONFIG = {
    "model.name": "vit_tiny",
    "optim.lr": 0.001,
    "data.scale": [0.1, 1.0],
    "tracking.experiment": "tests",
}


class TrackedRun:
    """Writes the events that a run writes, and reads back what was sent of them."""

    def __init__(self, path: Path, uri: str) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.uri = uri
        self.log = EventLog(path / "events.jsonl")
        (path / "config.yaml").write_text("model: {name: vit_tiny}\n")

    @property
    def run_id(self) -> str:
        return f"id-of-{self.path.name}"

    def start(self, *, origins: dict[str, dict[str, str]] | None = None, **config: object) -> None:
        self.log.append(
            "run",
            run_id=self.run_id,
            program="pretrain",
            command="python -m pretrain recipe.yaml",
            config={**CONFIG, "tracking.uri": self.uri, **config},
            world_size=2,
            versions={"torch": "2.14.1"},
            data_digest="5d41402a",
            datasets=[
                {
                    "context": context,
                    "name": f"flowers/{context[:5]}",
                    "digest": f"{context[:5]}41402a",
                    "source": place,
                    "num_samples": 90,
                }
                for context, place in (
                    ("training", "s3://bucket/flowers/train"),
                    ("validation", "/data/flowers/val"),
                )
            ],
            origins=origins or {},
            host="node-1",
            commit="3f9c2ab",
            **{"slurm.job_id": "4711"},
        )

    def train(self, first: int, last: int, *, scale: float = 1.0) -> None:
        for step in range(first, last + 1):
            values = {"train/loss": scale / step, "train/lr": 0.1}
            self.log.append("metrics", step=step, images=step * 8, values=values)

    def release(self, *, top1: float | None = None, weights: bytes = b"weights") -> None:
        (self.path / "release").mkdir(exist_ok=True)
        (self.path / "release" / "model.safetensors").write_bytes(weights)
        scores = {} if top1 is None else {"val/top1": top1}
        self.log.append("release", path="release", step=9, scores=scores)

    def points(self, key: str = "train/loss") -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.run.info.run_id, key)
        return sorted((metric.step, metric.value) for metric in history)

    def steps(self, key: str = "train/loss") -> list[int]:
        return [step for step, _ in self.points(key)]

    def offset(self, state_name: str = STATE_NAME) -> int:
        """How far a follower says that it is."""
        return int(self._state(state_name).get("offset", 0))

    def has_sent(self, file: str) -> bool:
        """Whether a follower says that it has sent a file."""
        return file in self._state(STATE_NAME).get("uploads", {})

    def is_sent(self) -> bool:
        return self.offset() == (self.path / "events.jsonl").stat().st_size

    def _state(self, name: str) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        return state

    @property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    @property
    def run(self) -> Run:
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        (run,) = self.client.search_runs(experiments, f"tags.`{RUN_ID_TAG}` = '{self.run_id}'")
        return run


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 600.0) -> None:
    """Returns when it holds; AssertionError when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
