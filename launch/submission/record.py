"""Submission: what was submitted from a run folder, kept in RUN/launch/submission.json; read and written here only."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from configs.base import ConfigError
from configs.cluster import ClusterConfig

FOLDER = "launch"
"""Name of the folder, below a run folder, that holds everything about its submissions; nobody else may write in it."""
_FILE = "submission.json"
_VERSION = 1

Kind = Literal["run", "array", "pipeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run as it was submitted; a requeue starts exactly this again."""

    program: str
    """What the user named: pretrain, finetune, evaluate; for an array or a pipeline: sweep, search, pipeline."""
    command: tuple[str, ...]
    """Module and arguments that every task runs: ``("pretrain", "/.../recipe.yaml", "--out", "/.../run")``."""
    recipe: str
    """As the user gave it; what runs is the copy in the snapshot."""
    overrides: tuple[str, ...]
    """Settings of the recipe that the user replaced."""
    cluster: ClusterConfig
    """The effective one."""
    snapshot: Path
    """Folder that holds the code."""
    commit: str
    """Of the code, with ``+`` and a digest where it had uncommitted changes; the version where it was installed."""
    config_hash: str
    run_folder: Path
    workdir: Path
    """Where relative paths of the recipe begin."""
    created: float
    """Seconds since 1970."""
    user: str
    node_counts: tuple[int, ...] = ()
    """Node counts between the cluster's least and most whose ranks can share the global batch; empty: each of them."""
    kind: Kind = "run"
    job_ids: tuple[str, ...] = ()
    """SLURM's: ``("17",)``, of an array ``("17_0", "17_1")``; empty until sbatch has answered."""
    parent: Path | None = None
    """Run folder of the array or the pipeline that this run is a part of."""

    @property
    def folder(self) -> Path:
        """Everything about this submission: the record itself, snapshot, script, logs, attempts."""
        return launch_folder(self.run_folder)


def launch_folder(run_folder: Path) -> Path:
    """Where the submissions of a run folder are kept."""
    return run_folder / FOLDER


def attempt_folder(run_folder: Path, job_id: str, restart: int) -> Path:
    """Where one start of a job leaves its traces; `job_id` is ``17``, or ``17_3`` for a task of an array."""
    return launch_folder(run_folder) / "attempts" / f"{job_id}.{restart}"


def write_submission(submission: Submission) -> Path:
    """Writes the record into its run folder, whole or not at all; the folder ``launch`` exists."""
    path = submission.folder / _FILE
    values = {field.name: getattr(submission, field.name) for field in fields(submission)}
    values["cluster"] = submission.cluster.model_dump(mode="json")
    aside = path.with_name(f"{_FILE}.{os.getpid()}.tmp")
    aside.write_text(json.dumps({"version": _VERSION, **values}, indent=1, default=str) + "\n")
    aside.replace(path)
    return path


def read_submission(run_folder: Path) -> Submission | None:
    """What was submitted from this run folder last; None where nothing was. Raises ConfigError for a broken record."""
    path = launch_folder(run_folder) / _FILE
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        if values.pop("version") != _VERSION:
            raise ValueError("it is of another version of Mirada")
        return _parse(values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the record of the submission, {str(path)!r}, cannot be read: {error}") from error


def with_jobs(submission: Submission, job_ids: tuple[str, ...]) -> Submission:
    """The same, once sbatch has answered."""
    return replace(submission, job_ids=job_ids)


def forget_submission(run_folder: Path, former: Submission | None) -> None:
    """Takes back a record that SLURM refused: what was there before is there again."""
    if former is not None:
        write_submission(former)
    else:
        (launch_folder(run_folder) / _FILE).unlink(missing_ok=True)


def _parse(values: dict[str, Any]) -> Submission:
    parent = values["parent"]
    values["parent"] = None if parent is None else Path(parent)
    values["cluster"] = ClusterConfig.model_validate(values["cluster"])
    for name in ("snapshot", "run_folder", "workdir"):
        values[name] = Path(values[name])
    for name in ("command", "overrides", "node_counts", "job_ids"):
        values[name] = tuple(values[name])
    return Submission(**values)
