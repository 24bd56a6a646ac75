"""Saving: one save under way, from files in host memory to a checkpoint that stands, or to the reason why it does not.

    each rank's thread: write, flush, fingerprint its files
    step boundary: all have | rank 0's thread: manifest, rename, `latest`, retention; or, if one could not, removal
    step boundary: it has   | rank 0 tells the others how it went

Threads issue no collective: ranks agree at step boundaries only.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.saving.checkpoint_folder import CheckpointFolder
from engine.saving.manifest import Manifest
from engine.saving.writer import FileQueue, Written, in_background
from engine.world import World

Part = Mapping[str, tuple[int, str]] | str
"""A rank's files as they go into the manifest, or why it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a save ended, the same on all ranks."""

    step: int
    path: Path
    problem: str | None
    """None when the checkpoint stands; else why it does not. The ones before are as they were."""
    num_bytes: int
    """Of all ranks' files; 0 when it does not stand."""
    write_s: float
    """Seconds in the background, from the copy in host memory on until rank 0's thread was through."""


class Saving:
    """One save under way; made, and asked how it goes, by all ranks together."""

    def __init__(
        self, files: FileQueue, manifest: Manifest, *, partial: Path, folder: CheckpointFolder, world: World
    ) -> None:
        self._manifest = manifest
        self._partial = partial
        self._folder = folder
        self._world = world
        self._started = time.monotonic()
        self._writing = in_background(files.write_all, name=f"save-{manifest.step}-write")
        self._ending: Future[Settled | None] | None = None

    def advance(self, *, wait: bool) -> Settled | None:
        """Takes the next stage if all ranks are through with the one before; how it ended, or None if it has not yet.

        Raises what a thread raised, unless the disk was the reason.
        """
        if self._ending is None and self._all_done(self._writing, wait=wait):
            parts = self._world.gather(self._own_part())
            self._ending = self._begin_ending(parts)
        if self._ending is None or not self._all_done(self._ending, wait=wait):
            return None
        return self._world.broadcast(self._ending.result())

    def _all_done(self, job: Future[Any], *, wait: bool) -> bool:
        """Whether every rank is through with its job, known to all; the time it takes one word from each."""
        if wait:
            futures.wait([job])
        return self._world.max(0 if job.done() else 1) == 0

    def _own_part(self) -> Part:
        try:
            written = self._writing.result()
        except OSError as error:
            return f"rank {self._world.rank}: {error}"
        return {_name(file, self._partial): (file.size, file.digest) for file in written}

    def _begin_ending(self, parts: list[Part]) -> Future[Settled | None]:
        if self._world.is_main:
            return in_background(lambda: self._end(parts), name=f"save-{self._manifest.step}-publish")
        nothing_to_do: Future[Settled | None] = Future()
        nothing_to_do.set_result(None)
        return nothing_to_do

    def _end(self, parts: list[Part]) -> Settled:
        problem = next((part for part in parts if isinstance(part, str)), None)
        files = {name: entry for part in parts if not isinstance(part, str) for name, entry in part.items()}
        manifest = replace(self._manifest, files=files)
        if problem is None:
            try:
                self._folder.publish(self._partial, manifest)
            except OSError as error:
                problem = f"rank 0: {error}"
        if problem is not None:
            problem += self._remove()
        return Settled(
            step=manifest.step,
            path=self._folder.final(manifest.step),
            problem=problem,
            num_bytes=manifest.num_bytes if problem is None else 0,
            write_s=time.monotonic() - self._started,
        )

    def _remove(self) -> str:
        """Frees what a save took that cannot be ended; returns that in words, with the bytes."""
        try:
            if not self._partial.exists():
                return ""
            num_bytes = sum(path.stat().st_size for path in self._partial.rglob("*") if path.is_file())
            shutil.rmtree(self._partial)
            free = shutil.disk_usage(self._folder.path).free
        except OSError as error:
            return f"; what was written is not removed ({error})"
        return f"; {num_bytes:,} bytes were written and are removed again, {free:,} are free now"


def _name(file: Written, folder: Path) -> str:
    return file.path.relative_to(folder).as_posix()
