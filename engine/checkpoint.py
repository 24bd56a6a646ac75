"""CheckpointStore: checkpoints that appear whole or not at all, are verified when read, and survive a broken one."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy
import torch

from data_pipeline.whole_file import sync_folder, write_whole
from engine.durable import flush_file, naming_full_disk
from engine.errors import CheckpointError
from engine.world import World
from engine.zero import Engine

log = logging.getLogger(__name__)

_FORMAT = 1
_MANIFEST = "manifest.json"
_SHARED = "shared.pt"
_PREFIX = "step-"
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the newest whole checkpoint gave back, beside the engine's own state."""

    step: int
    path: Path
    shared: dict[str, Any]
    """Equal on all ranks."""
    own: dict[str, Any] | None
    """This rank's; None when it was not there at the save (stage 0, more ranks than before)."""


class CheckpointStore:
    """The folder of a run's checkpoints, newest kept; every method is called by all ranks together.

    ``step-00001200/`` holds DeepSpeed's files, ``rank-00000.pt`` per rank, ``shared.pt``, and ``manifest.json`` with
    size and digest of each, written last; ``latest`` names the newest. NOTE: DeepSpeed's files are pickles: a
    checkpoint is as trustworthy as who wrote it.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, run_digest: str) -> None:
        self._folder = folder
        self._world = world
        self._keep = keep
        self._run_digest = run_digest

    def save(self, step: int, engine: Engine, *, shared: Mapping[str, Any], own: Mapping[str, Any]) -> Path:
        """Writes a checkpoint aside, flushes it to the disk, and puts it in place by a rename."""
        final = self._folder / f"{_PREFIX}{step:08d}"
        partial = self._folder / f"{_PARTIAL}{final.name}"
        if self._world.is_main:
            _remove_leftovers(self._folder)
            partial.mkdir(parents=True)
        self._world.barrier()
        with naming_full_disk(self._folder):
            engine.save(partial)
            torch.save({**own, "rng": _rng_state()}, partial / f"rank-{self._world.rank:05d}.pt")
            if self._world.is_main:
                torch.save({**shared, "engine": engine.state_dict()}, partial / _SHARED)
        self._world.barrier()
        files = self._digests(partial)
        if self._world.is_main:
            manifest = {
                "format": _FORMAT,
                "step": step,
                "world_size": self._world.size,
                "zero_stage": engine.stage,
                "run_digest": self._run_digest,
                "files": files,
            }
            self._publish(partial, final, manifest)
        self._world.barrier()
        return final

    def load_newest(self, engine: Engine) -> Checkpoint | None:
        """Loads the newest whole checkpoint into the engine, naming broken ones; None when there is none at all."""
        names = self._world.broadcast(_names(self._folder))
        for name in names:
            problem = self._problem(self._folder / name)
            if problem is None:
                return self._load(self._folder / name, engine)
            if self._world.is_main:
                log.warning(
                    "checkpoint %s is broken (%s); trying the one before", self._folder / name, problem
                )
        if names:
            raise CheckpointError(
                f"none of the checkpoints in {str(self._folder)!r} is whole ({', '.join(names)}); "
                "bring one back from a copy, or start the run afresh with --fresh"
            )
        return None

    def _load(self, path: Path, engine: Engine) -> Checkpoint:
        manifest = _read_manifest(path)
        self._check_fits(path, manifest, engine)
        engine.load(path)
        shared = torch.load(path / _SHARED, map_location=self._world.device, weights_only=True)
        engine.load_state_dict(shared.pop("engine"))
        own_path = path / f"rank-{self._world.rank:05d}.pt"
        own = torch.load(own_path, map_location="cpu", weights_only=True) if own_path.exists() else None
        if own is not None:
            _set_rng_state(own.pop("rng"))
        self._world.barrier()
        return Checkpoint(step=manifest["step"], path=path, shared=shared, own=own)

    def _check_fits(self, path: Path, manifest: Mapping[str, Any], engine: Engine) -> None:
        if manifest["run_digest"] != self._run_digest:
            raise CheckpointError(
                f"checkpoint {str(path)!r} belongs to a run with another config; "
                "use another --out, or start this one afresh with --fresh"
            )
        if engine.stage > 0 and manifest["world_size"] != self._world.size:
            raise CheckpointError(
                f"checkpoint {str(path)!r} was saved by {manifest['world_size']} ranks, and this run has "
                f"{self._world.size}: with zero.stage {engine.stage} the optimizer state is cut into one piece per "
                f"rank. Resume with {manifest['world_size']} ranks (train.ranks={manifest['world_size']})"
            )

    def _problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, found by all ranks together, or None."""
        try:
            files = _read_manifest(path)["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            found: str | None = f"{_MANIFEST}: {error}"
        else:
            found = _first_mismatch(path, self._share(sorted(files)), files)
        return next((problem for problem in self._world.gather(found) if problem is not None), None)

    def _digests(self, folder: Path) -> dict[str, list[Any]]:
        """Size and digest of each file, flushed to the disk; the ranks share the files among them."""
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        own = {name: _flushed_digest(folder / name) for name in self._share(names)}
        return {name: entry for part in self._world.gather(own) for name, entry in part.items()}

    def _share(self, names: list[str]) -> list[str]:
        return names[self._world.rank :: self._world.size]

    def _publish(self, partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
        write_whole(partial / _MANIFEST, json.dumps(manifest, indent=1))
        for folder in [p for p in partial.rglob("*") if p.is_dir()] + [partial]:
            sync_folder(folder)
        if final.exists():  # broken, and skipped when this run resumed
            final.rename(self._folder / f"{_PARTIAL}replaced-{final.name}")
        partial.rename(final)
        sync_folder(self._folder)
        write_whole(self._folder / "latest", final.name + "\n")
        for name in _names(self._folder)[self._keep :]:
            shutil.rmtree(self._folder / name)
        _remove_leftovers(self._folder)


def _names(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p.name for p in folder.iterdir() if p.name.startswith(_PREFIX)), reverse=True)


def _remove_leftovers(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(_PARTIAL + "*"):
        shutil.rmtree(path)


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text())
    if manifest["format"] != _FORMAT:
        raise ValueError(f"format {manifest['format']!r} is not {_FORMAT}")
    return manifest


def _first_mismatch(folder: Path, names: list[str], files: Mapping[str, list[Any]]) -> str | None:
    for name in names:
        path, (size, digest) = folder / name, files[name]
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{name} has other contents than were written"
    return None


def _flushed_digest(path: Path) -> list[Any]:
    flush_file(path)
    return [path.stat().st_size, _digest(path)]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _rng_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
