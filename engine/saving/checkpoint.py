"""CheckpointStore: checkpoints that cost the loop one copy, appear whole or not at all, and are verified when read."""

from __future__ import annotations

import io
import logging
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.saving.checkpoint_folder import CheckpointFolder
from engine.saving.manifest import MANIFEST, Manifest, read_manifest
from engine.saving.random_state import random_state, set_random_state
from engine.saving.saving import Saving, Settled
from engine.saving.writer import FileQueue
from engine.sharding.zero import Engine
from engine.world import World

log = logging.getLogger(__name__)

_SHARED = "shared.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the newest whole checkpoint gave back, beside the engine's own state."""

    step: int
    path: Path
    shared: dict[str, Any]
    """Equal on all ranks."""
    own: dict[str, Any] | None
    """This rank's; None when the save had fewer ranks."""


class CheckpointStore:
    """The folder of a run's checkpoints; every method is called by all ranks together, at step boundaries.

    A checkpoint holds the engine's files, ``rank-00000.pt`` per rank, ``shared.pt``, and ``manifest.json``. One save is
    under way at a time, so host memory holds one copy at most. docs/checkpoints.md says what is guaranteed.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, run_digest: str) -> None:
        self._folder = CheckpointFolder(path=folder, keep=keep)
        self._world = world
        self._run_digest = run_digest
        self._token = world.broadcast(secrets.token_hex(4))
        self._saving: Saving | None = None
        self._settled: deque[Settled] = deque()

    def save(self, step: int, engine: Engine, *, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Starts a save and returns when all is copied to host memory; waits for the save before it."""
        self._advance(wait=True)
        partial = self._folder.partial(step, self._token)
        files = FileQueue()
        engine.save(partial, files)
        _put_state(files, partial / _rank_file(self._world.rank), {**own, "rng": random_state()})
        if self._world.is_main:
            _put_state(files, partial / _SHARED, {**shared, "engine": engine.state_dict()})
        manifest = Manifest(
            step=step,
            world_size=self._world.size,
            zero_stage=engine.stage,
            run_digest=self._run_digest,
            files={},
        )
        self._saving = Saving(files, manifest, partial=partial, folder=self._folder, world=self._world)

    def settle(self, *, wait: bool = False) -> Settled | None:
        """How a save ended, once for each, the oldest first; None when there is no news.

        Without `wait` it costs nothing when no save is under way, and else one word from each rank. With `wait` no save
        is under way afterwards; call it until it gives None: at the end of a run, before an exit, before a rollback.
        """
        self._advance(wait=wait)
        return self._settled.popleft() if self._settled else None

    def load_newest(self, engine: Engine) -> Checkpoint | None:
        """Loads the newest whole checkpoint into the engine, naming broken ones; None when there is none at all."""
        self._advance(wait=True)
        unfinished = self._folder.remove_unfinished() if self._world.is_main else []
        unfinished, names = self._world.broadcast((unfinished, self._folder.names()))
        for name in names:
            path = self._folder.path / name
            manifest, problem = self._examine(path)
            if manifest is not None and problem is None:
                self._say_unfinished(unfinished, f"going on from {path}")
                return self._load(path, manifest, engine)
            self._warn("checkpoint %s is broken (%s); trying the one before", path, problem)
        if names:
            raise CheckpointError(
                f"none of the checkpoints in {str(self._folder.path)!r} is whole ({', '.join(names)}); "
                "bring one back from a copy, or start the run afresh with --fresh"
            )
        self._say_unfinished(unfinished, "there is no other one, so the run begins anew")
        return None

    def _advance(self, *, wait: bool) -> None:
        settled = None if self._saving is None else self._saving.advance(wait=wait)
        if settled is None:
            return
        self._saving = None
        self._settled.append(settled)
        if settled.problem is not None:
            self._warn(
                "checkpoint %s could NOT be saved (%s). Training goes on, and saves again when the next is due; "
                "until then the newest is: %s",
                settled.path,
                settled.problem,
                next(iter(self._folder.names()), "none"),
            )

    def _load(self, path: Path, manifest: Manifest, engine: Engine) -> Checkpoint:
        if manifest.run_digest != self._run_digest:
            raise CheckpointError(
                f"checkpoint {str(path)!r} belongs to a run with another config; "
                "use another --out, or start this one afresh with --fresh"
            )
        engine.load(path, world_size=manifest.world_size)
        shared = torch.load(path / _SHARED, map_location=self._world.device, weights_only=True)
        engine.load_state_dict(shared.pop("engine"))
        own = None
        if _rank_file(self._world.rank) in manifest.files:
            own = torch.load(path / _rank_file(self._world.rank), map_location="cpu", weights_only=True)
            set_random_state(own.pop("rng"))
        self._world.barrier()
        return Checkpoint(step=manifest.step, path=path, shared=shared, own=own)

    def _examine(self, path: Path) -> tuple[Manifest | None, str | None]:
        """A checkpoint's manifest, and what is wrong with it, found by all ranks together; they share its files."""
        manifest, found = None, None
        try:
            manifest = read_manifest(path)
            found = manifest.mismatch(path, sorted(manifest.files)[self._world.rank :: self._world.size])
        except (OSError, ValueError) as error:
            found = f"{MANIFEST}: {error}" if manifest is None else str(error)
        return manifest, next((problem for problem in self._world.gather(found) if problem is not None), None)

    def _say_unfinished(self, names: list[str], consequence: str) -> None:
        if names:
            self._warn(
                "the save of %s did not come to its end (killed, or the disk full); its files are removed, %s",
                ", ".join(names),
                consequence,
            )

    def _warn(self, message: str, *values: object) -> None:
        if self._world.is_main:
            log.warning(message, *values)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _put_state(files: FileQueue, path: Path, state: Mapping[str, Any]) -> None:
    """Puts a small state as the bytes it is now: what it was taken from goes on changing."""
    content = io.BytesIO()
    torch.save(dict(state), content)

    def write(target: Path) -> None:
        target.write_bytes(content.getbuffer())

    files.put(path, write)
