"""The "run" event: what a start of a run says about itself: command, config, data, code and machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from configs.load import packaged_root
from configs.training import RunConfig
from data_pipeline.index import ShardIndex
from data_pipeline.joined import JoinedIndex
from engine.command import Command
from engine.events import read_events
from engine.machine import describe_machine
from engine.results.release import run_of_release
from engine.run_folder import RunFolder
from engine.world import World

_PACKAGES = ("torch", "deepspeed", "timm", "webdataset", "mlflow", "numpy")
_SLURM = {
    "slurm.job_id": "SLURM_JOB_ID",
    "slurm.array_job_id": "SLURM_ARRAY_JOB_ID",
    "slurm.array_task_id": "SLURM_ARRAY_TASK_ID",
    "slurm.restart_count": "SLURM_RESTART_COUNT",
}


def describe_run(
    command: Command,
    config: RunConfig,
    world: World,
    folder: RunFolder,
    index: ShardIndex,
    val_index: ShardIndex | None,
) -> dict[str, Any]:
    """Fields of the event; a run that is resumed keeps the `run_id` of its first start."""
    former = next((event for event in read_events(folder.events) if event["kind"] == "run"), None)
    return {
        "run_id": uuid.uuid4().hex if former is None else former["run_id"],
        "name": config.tracking.run_name or folder.path.name,
        "program": command.program,
        "command": str(command),
        "config": dict(_flat(config.model_dump(mode="json"))),
        "config_digest": folder.digest,
        "data_digest": index.digest,
        "num_samples": index.num_samples,
        "datasets": list(_datasets(config, index, val_index)),
        "origins": {role: _origin(reference) for role, reference in config.releases.items()},
        "world_size": world.size,
        "device": str(world.device.type),
        "host": socket.gethostname(),
        **describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        **_code_version(),
        **{key: os.environ[name] for key, name in _SLURM.items() if name in os.environ},
    }


def _datasets(
    config: RunConfig, index: ShardIndex, val_index: ShardIndex | None
) -> Iterator[dict[str, str | int]]:
    """Each corpus that is trained on, and the one that is evaluated on."""
    members = index.members if isinstance(index, JoinedIndex) else (index,)
    places = [config.data.train, *(corpus.train for corpus in config.data.mixture)]
    corpora = [("training", place, member) for place, member in zip(places, members, strict=True)]
    if val_index is not None:
        corpora.append(("validation", config.data.evaluated, val_index))
    for context, place, corpus in corpora:
        yield {
            "context": context,
            "name": f"{corpus.name}/{corpus.split}",
            "digest": corpus.digest,
            "source": place,
            "num_samples": corpus.num_samples,
        }


def _origin(reference: str) -> dict[str, str]:
    run_id = run_of_release(reference)
    return {"path": reference} if run_id is None else {"path": reference, "run_id": run_id}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                value if isinstance(value, str | int | float | None) else json.dumps(value),
            )


def _code_version() -> dict[str, Any]:
    """Commit of the checkout this runs from; empty for an installed package."""
    try:
        git = ["git", "-C", str(packaged_root())]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout)} if commit.returncode == 0 else {}
