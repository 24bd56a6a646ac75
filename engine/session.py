"""Session: what every training program opens before its model and closes after its last step.

ranks -> data -> [model -> engine -> objective: the program's own] -> run folder -> event log -> Trainer -> release
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from configs.base import ConfigError
from configs.load import packaged_root
from configs.training import RunConfig
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.joined import open_training
from data_pipeline.loader import EvalLoader, ShardLoader
from engine.bad_list import BadList
from engine.checkpoint import CheckpointStore
from engine.command import Command
from engine.evaluate import Evaluator
from engine.events import EventLog, read_events
from engine.objective import Objective
from engine.preempt import StopSignal
from engine.progress import Progress
from engine.release import write_release
from engine.run_folder import RunFolder, open_run_folder, start_logging
from engine.timetable import Timetable
from engine.tracking import start_follower
from engine.trainer import Outcome, Trainer
from engine.world import World, close_world, init_world
from engine.zero import Engine

_PACKAGES = ("torch", "deepspeed", "timm", "webdataset", "mlflow", "numpy")


class Session:
    """The ranks and data of one run; from `trainer` on also its folder, which a mistake made before leaves alone."""

    def __init__(self, command: Command, config: RunConfig, world: World, stop: StopSignal) -> None:
        self.config = config
        self.world = world
        self.stop = stop
        self.index, val_index = _open_data(config)
        self._command = command
        self._loader = ShardLoader(
            self.index,
            config.data,
            global_batch=config.train.global_batch,
            seed=config.train.seed,
            rank=world.rank,
            world_size=world.size,
        )
        self._timetable = Timetable.of(config, steps_per_epoch=self._loader.batches_per_epoch)
        self._val_loader = None if val_index is None else self._make_val_loader(val_index)
        self._folder: RunFolder | None = None
        self._events = EventLog(None)
        self._progress = Progress(command.out.name, quiet=not world.is_main)

    def trainer(self, engine: Engine, objective: Objective) -> Trainer:
        """Takes the run folder, writes the "run" event, starts its follower, and gives the loop over the data."""
        self._folder = open_run_folder(self._command.out, self.config, self.world, fresh=self._command.fresh)
        start_logging(self._folder, self.world)
        if self.world.is_main:
            self._events = EventLog(self._folder.events)
            self._events.append(
                "run", **_describe_run(self._command, self.config, self.world, self._folder, self.index)
            )
            start_follower(self._folder.path)
        checkpoints = CheckpointStore(
            self._folder.checkpoints,
            self.world,
            keep=self.config.train.keep_checkpoints,
            run_digest=self._folder.digest,
        )
        return Trainer(
            engine=engine,
            objective=objective,
            loader=self._loader,
            timetable=self._timetable,
            checkpoints=checkpoints,
            events=self._events,
            progress=self._progress,
            evaluator=self._evaluator(),
            bad_lists=self._bad_lists(self._folder),
            seed=self.config.train.seed,
        )

    def close(self, engine: Engine, outcome: Outcome) -> int:
        """Releases a finished run's weights; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
        if outcome.stopped_by is None and self._folder is not None:
            weights = engine.release_weights()
            if self.world.is_main:
                self._release(self._folder, engine, weights, outcome)
        self._events.close()
        return outcome.exit_code

    def _make_val_loader(self, index: ShardIndex) -> EvalLoader:
        share = -(-self.config.train.global_batch // self.world.size)
        return EvalLoader(
            index, self.config.data, batch_size=share, rank=self.world.rank, world_size=self.world.size
        )

    def _evaluator(self) -> Evaluator | None:
        if self._val_loader is None:
            return None
        data = self.config.data
        return Evaluator(batches=self._val_loader, mean=data.mean, std=data.std, world=self.world)

    def _bad_lists(self, folder: RunFolder) -> list[BadList]:
        path, limit = folder.bad_samples if self.world.is_main else None, self.config.data.max_bad_fraction
        lists = [BadList(path, self._loader, max_fraction=limit)]
        if self._val_loader is not None:
            lists.append(BadList(path, self._val_loader, max_fraction=limit, data="val"))
        return lists

    def _release(
        self, folder: RunFolder, engine: Engine, weights: Mapping[str, Tensor], outcome: Outcome
    ) -> None:
        path = write_release(
            folder.release,
            model=engine.module,
            weights=weights,
            config=self.config,
            classes=self.index.classes,
            command=str(self._command),
            data_digest=self.index.digest,
            step=outcome.step,
            scores=outcome.scores,
        )
        self._events.append("release", path=str(path))
        self._progress.note(f"released {path}")


@contextmanager
def open_session(command: Command, config: RunConfig) -> Iterator[Session]:
    """Joins the other ranks and opens the data; every mistake of the user's ends here or before `Session.trainer`."""
    with StopSignal() as stop:
        world = init_world()
        torch.manual_seed(config.train.seed)  # the same first weights on every rank
        yield Session(command, config, world, stop)
        close_world()


def _open_data(config: RunConfig) -> tuple[ShardIndex, ShardIndex | None]:
    """Training and validation index; classes that do not fit one another or the model are errors."""
    index = open_training(config.data)
    known, wanted = len(index.classes), config.model.num_classes
    if not known:
        raise ConfigError(
            f"data.train: {config.data.train!r} has no labels, so there are no classes to learn"
        )
    if wanted not in (None, known):
        raise ConfigError(
            f"model.num_classes is {wanted}, but the class map of {config.data.train!r} has {known} classes "
            f"({', '.join(index.classes[:5])}{' ...' if known > 5 else ''}); leave model.num_classes out"
        )
    if config.data.val is None:
        return index, None
    val_index = open_index(config.data.val)
    if val_index.classes != index.classes:
        raise ConfigError(
            f"data.val: the class map of {config.data.val!r} ({len(val_index.classes)} classes) is not that of "
            f"{config.data.train!r} ({known} classes); build both with the same classes (--classes)"
        )
    return index, val_index


def _describe_run(
    command: Command, config: RunConfig, world: World, folder: RunFolder, index: ShardIndex
) -> dict[str, Any]:
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
        "world_size": world.size,
        "device": str(world.device.type),
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        **_code_version(),
        **{key: os.environ[name] for key, name in _SLURM.items() if name in os.environ},
    }


_SLURM = {"slurm.job_id": "SLURM_JOB_ID", "slurm.restart_count": "SLURM_RESTART_COUNT"}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                value if isinstance(value, str | int | float | None) else json.dumps(value),
            )


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(named, platform.machine())
    except OSError:
        return platform.machine()


def _code_version() -> dict[str, Any]:
    """Commit of the checkout this runs from; empty for an installed package."""
    try:
        git = ["git", "-C", str(packaged_root())]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout)} if commit.returncode == 0 else {}
