"""Sends a run's event log to MLflow, from a process of its own; the only importer of mlflow.

python -m engine.tracking RUN_DIR [--follow]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.base import ConfigError
from configs.exit_code import USAGE, run_main
from configs.load import packaged_root
from engine.follower import LOCK_NAME, STATUS, Event, Follower, SinkError, follow, held, newest_run_event

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

OFF = "off"
RUN_ID_TAG = "mirada.run_id"
GRACE_S = 60.0
"""How long a follower keeps trying after training ended; `mirada sync` sends what is left then."""

_PARAM_CHARS, _TAG_CHARS, _NAME_CHARS = 6000, 5000, 250  # of tags MLflow takes 8000, older servers 5000
_MLFLOW_TAGS = {"source.name": "command", "source.git.commit": "commit"}
_NO_TAGS = {"time", "kind", "run_id", "name", "config", "versions"}
_NAME_REFUSED = re.compile(r"[^\w\-. :/]", re.ASCII)
_TIMEOUT_S = 5
_UPLOAD_TIMEOUT_S = 300

log = logging.getLogger(__name__)


def start_follower(run_dir: Path) -> subprocess.Popen[bytes] | None:
    """Starts the follower of this process's run, once the "run" event is written; None where tracking is off.

    It ends by itself: when the run's last event is sent, or soon after this process is gone; nobody waits.
    """
    event = newest_run_event(run_dir)
    if event is not None and tracking_uri(event, run_dir) == OFF:
        return None
    python_path = [str(packaged_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "engine.tracking", str(run_dir.resolve())]
    command += ["--follow", "--parent", str(os.getpid())]
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    with (run_dir / "logs" / "tracking.log").open("ab") as output:
        # A session of its own: Ctrl-C ends training, and the follower lives to tell the server so.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def sync(run_dir: Path) -> int:
    """Sends what the server lacks and returns the number of events; ConfigError when it cannot be reached."""
    follower = Follower(run_dir, lambda event: MlflowRun(event, run_dir))
    with held(run_dir / LOCK_NAME, wait=False) as alone:
        if not alone:
            raise ConfigError(f"{run_dir} is being followed right now, see {run_dir}/logs/tracking.log")
        try:
            return follower.send_all()
        except SinkError as failure:
            raise ConfigError(
                f"{failure}\n  the events stay in {run_dir}: start the server, or set MLFLOW_TRACKING_URI or "
                "the recipe's tracking.uri, then run the same command again"
            ) from failure


def follow_run(run_dir: Path, *, parent: int | None = None, grace_s: float = GRACE_S) -> bool:
    """Sends events until the run has ended or process `parent` is gone; False if the server stays away."""
    follower = Follower(run_dir, lambda event: MlflowRun(event, run_dir))
    with held(run_dir / LOCK_NAME, wait=True):  # a follower from before a restart may still be sending
        return follow(follower, parent=parent, grace_s=grace_s)


def tracking_uri(event: Event, run_dir: Path) -> str:
    """The recipe's tracking.uri, else $MLFLOW_TRACKING_URI, else a database beside the run folder."""
    configured = event.get("config", {}).get("tracking.uri")
    database = run_dir.resolve().parent / "mlflow.db"
    return str(configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}")


class MlflowRun:
    """The one MLflow run of a run folder, found again by a tag that holds our run id."""

    def __init__(self, event: Event, run_dir: Path) -> None:
        from mlflow import MlflowClient

        self._uri = tracking_uri(event, run_dir)
        with _complaints(self._uri), _schema_lock(self._uri):
            self._client = MlflowClient(tracking_uri=self._uri)
            run = self._find_or_create(event, run_dir)
        self._id: str = run.info.run_id
        self.place = f"{self._uri} {self._id}"
        self._status: str = run.info.status
        self._params: dict[str, str] = dict(run.data.params)
        # The server's memory makes sending twice harmless: points up to its last step are not sent again.
        self._last_steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}

    def send(self, events: Sequence[Event]) -> None:
        """Sends a piece of the log; what the server has already is left out."""
        from mlflow.entities import Param, RunTag

        metrics = self._new_points(events)
        params, tags = self._new_params(events)
        tags |= {key: text for event in events for key, text in _tags(event).items()}
        with _complaints(self._uri):
            self._client.log_batch(
                self._id,
                metrics,
                [Param(*item) for item in params.items()],
                [RunTag(*item) for item in tags.items()],
            )
            self._send_status(events)
        self._params |= params
        self._last_steps |= {metric.key: metric.step for metric in metrics}

    def upload(self, path: Path, folder: str) -> None:
        """Stores a file as an artifact of the run."""
        with _complaints(self._uri), _environment(MLFLOW_HTTP_REQUEST_TIMEOUT=str(_UPLOAD_TIMEOUT_S)):
            self._client.log_artifact(self._id, str(path), None if folder == "." else folder)

    def _find_or_create(self, event: Event, run_dir: Path) -> Run:
        config = event.get("config", {})
        experiment = _experiment_id(self._client, config.get("tracking.experiment") or "mirada", self._uri)
        run_id = str(event["run_id"])
        known = self._client.search_runs([experiment], f"tags.`{RUN_ID_TAG}` = '{run_id}'", max_results=1)
        if known:
            return known[0]
        name = config.get("tracking.run_name") or run_dir.resolve().name
        return self._client.create_run(experiment, _milliseconds(event), {RUN_ID_TAG: run_id}, run_name=name)

    def _new_points(self, events: Sequence[Event]) -> list[Metric]:
        from mlflow.entities import Metric

        last_steps = dict(self._last_steps)
        metrics = []
        for event in events:
            for key, value in event.get("values", {}).items():
                name, step = _allowed_name(key), event["step"]
                if isinstance(value, (int, float)) and step > last_steps.get(name, -1):
                    metrics.append(Metric(name, float(value), _milliseconds(event), step))
                    last_steps[name] = step
        return metrics

    def _new_params(self, events: Sequence[Event]) -> tuple[dict[str, str], dict[str, str]]:
        """Params that the server lacks; as tags those that changed, because a param is set only once."""
        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for event in events:
            for name, text in _config_texts(event).items():
                before = (self._params | new).get(name)
                if before is None:
                    new[name] = text
                elif before != text:
                    changed[_allowed_name(f"changed.{name}")] = text[:_TAG_CHARS]
        return new, changed

    def _send_status(self, events: Sequence[Event]) -> None:
        decisive = [event for event in events if event["kind"] in STATUS]
        status = STATUS[decisive[-1]["kind"]] if decisive else self._status
        if status == self._status:
            return
        if status == "RUNNING":
            self._client.update_run(self._id, status=status)
        else:
            self._client.set_terminated(self._id, status, end_time=_milliseconds(decisive[-1]))
        self._status = status


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: parse, send, exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.tracking", description="Send a run's event log to MLflow."
    )
    parser.add_argument("run_dir", type=Path, help="run folder, the one with events.jsonl")
    parser.add_argument("--follow", action="store_true", help="keep sending until the run has ended")
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, help="seconds to keep trying after that (%(default)g)"
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    _quiet_mlflow()
    if options.parent is not None:
        _behave_as_child()
    event = newest_run_event(options.run_dir)
    if event is not None and tracking_uri(event, options.run_dir) == OFF:
        sys.stdout.write(f"{options.run_dir}: tracking.uri is 'off', nothing is sent\n")
        return 0
    if options.follow:
        return 0 if follow_run(options.run_dir, parent=options.parent, grace_s=options.grace) else USAGE
    sys.stdout.write(f"{options.run_dir}: {sync(options.run_dir)} new events sent\n")
    return 0


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
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


def _artifact_location(uri: str) -> str | None:
    """Beside a local database; a server knows itself. MLflow's own default is ./mlruns, wherever that is."""
    database = _database_file(uri)
    return None if database is None else str(database.parent / "mlartifacts")


def _database_file(uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).resolve() if uri.startswith(prefix) else None


def _tags(event: Event) -> dict[str, str]:
    """What an event says about the run as a whole."""
    tags: dict[str, Any] = {}
    match event["kind"]:
        case "run":
            tags |= {_tag_name(key): value for key, value in event.items() if key not in _NO_TAGS}
            tags |= {f"version.{name}": version for name, version in event.get("versions", {}).items()}
            tags |= {f"mlflow.{name}": event.get(key) for name, key in _MLFLOW_TAGS.items()}
        case "checkpoint" | "release" as kind:
            tags[f"mirada.{kind}"] = event.get("path")
        case "stopped":
            tags["mirada.stopped"] = event.get("reason")
        case "failed":
            tags["mirada.error"] = event.get("error")
    known = {name: value for name, value in tags.items() if value not in (None, "")}
    return {_allowed_name(name): _text(value)[:_TAG_CHARS] for name, value in known.items()}


def _tag_name(key: str) -> str:
    return key if key.startswith("slurm.") else f"mirada.{key}"


def _config_texts(event: Event) -> dict[str, str]:
    config: Mapping[str, Any] = event.get("config", {}) if event["kind"] == "run" else {}
    return {_allowed_name(key): _text(value)[:_PARAM_CHARS] for key, value in config.items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _allowed_name(key: str) -> str:
    return _NAME_REFUSED.sub("_", key)[:_NAME_CHARS]


def _milliseconds(event: Event) -> int:
    return int(event["time"] * 1000)


@contextlib.contextmanager
def _complaints(uri: str) -> Iterator[None]:
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
        raise SinkError(f"tracking server {uri!r}: {reason[:400]}") from failure


@contextlib.contextmanager
def _schema_lock(uri: str) -> Iterator[None]:
    """Lets one process at a time create the tables of a local database: MLflow's migrations race."""
    database = _database_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with held(database.with_name(f".{database.name}.lock"), wait=True):
        yield


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _quiet_mlflow() -> None:
    """No telemetry, no chatter, short timeouts: to be called before mlflow is imported."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _behave_as_child() -> None:
    """Yields the processor to training, and outlives the signals that are meant for it."""
    os.nice(10)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    run_main(main)
