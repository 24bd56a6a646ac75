"""RunFolder: the folder of one run: whose it is, what lies where, and who may write in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from configs.base import ConfigError
from configs.same_run import fixed_settings, free_sibling, refuse_other_run
from configs.training import RunConfig
from data_pipeline.whole_file import write_whole
from engine.world import World

_NO_RUN = ("logs", "launch")
"""What a folder may hold before a run has begun in it: logs, and the record of its submission."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Paths within a run folder that belongs to this run's config."""

    path: Path
    digest: str
    """Of all settings that the weights depend on."""

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def release(self) -> Path:
        return self.path / "release"

    def release_of(self, name: str) -> Path:
        """Where the network of a name is released that was trained beside the run's own, which is ""."""
        return self.path / "students" / name / "release" if name else self.release

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def starting_weights(self) -> Path:
        """What became of each weight of the checkpoint that the run started from."""
        return self.path / "starting_weights.json"

    @property
    def bad_samples(self) -> Path:
        return self.path / "bad_samples.jsonl"

    @property
    def skipped_windows(self) -> Path:
        return self.path / "skipped_windows.jsonl"

    def log(self, rank: int) -> Path:
        """Where a rank's log goes."""
        return self.path / "logs" / f"rank_{rank}.log"

    def stacks(self, rank: int) -> Path:
        """Where a rank that hangs says what its threads were doing."""
        return self.path / "logs" / f"rank_{rank}.stacks"


def open_run_folder(path: Path, config: RunConfig, world: World, *, fresh: bool = False) -> RunFolder:
    """Takes the folder for this run, new or to be resumed; all ranks together, and all fail together.

    Refuses a folder that belongs to another config or that another process is training in. With `fresh` the old
    contents move to a numbered sibling first; nothing is ever deleted.
    """
    problem = None
    if world.is_main:
        try:
            _claim(path, config, fresh=fresh)
        except (ConfigError, OSError) as error:
            problem = error
    problem = world.broadcast(problem)
    if problem is not None:
        raise problem
    return RunFolder(path=path, digest=config_digest(config))


def config_digest(config: RunConfig) -> str:
    """Fingerprint of the settings that the weights depend on."""
    fixed = fixed_settings(config)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def start_logging(folder: RunFolder, world: World) -> None:
    """Sends all messages of this rank to its log file, and from WARNING on rank 0's (ERROR others') to stderr."""
    target = folder.log(world.rank)
    target.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(target)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setLevel(logging.WARNING if world.is_main else logging.ERROR)
    to_terminal.setFormatter(logging.Formatter(f"%(levelname)s [rank {world.rank}] %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [to_file, to_terminal]
    root.setLevel(logging.INFO)


def _claim(path: Path, config: RunConfig, *, fresh: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {str(path)!r} is a file; name a folder")
    if path.exists() and any(
        p for p in path.iterdir() if p.name not in _NO_RUN and not p.name.startswith(".")
    ):
        if not (path / "config.yaml").exists():
            raise ConfigError(
                f"--out {str(path)!r} is not empty and not a run folder (it has no config.yaml); name another folder"
            )
        if fresh:
            _lock(path)
            path.rename(free_sibling(path))
        else:
            refuse_other_run(path, config)
    path.mkdir(parents=True, exist_ok=True)
    _lock(path)
    write_whole(path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


_HELD: list[int] = []
"""Locks of this process; the kernel gives them back when it ends, however it ends."""


def _lock(path: Path) -> None:
    """Takes the folder for this process. NOTE: a record lock: loader workers that outlive a kill do not inherit it."""
    fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        raise ConfigError(
            f"another process is training in {str(path)!r}; wait for it or stop it, or name another folder with --out"
        ) from None
    except OSError:
        pass  # a file system without locks (some NFS mounts)
    _HELD.append(fd)
