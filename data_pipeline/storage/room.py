"""Room: how many bytes the copies in a cache folder may take, and which of them go when others come."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_pipeline.errors import DataError
from data_pipeline.storage.locks import locked, remove_unlocked

log = logging.getLogger(__name__)

PARTIAL = ".partial"
_STEP = 64 << 20  # a file that outgrows its reservation gets this much more


class NoRoomError(Exception):
    """A copy that nobody waits for does not fit beside those that are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """On whose account room is made."""

    keep: Collection[str] = ()
    """Names of copies that must not go for this one."""
    release: Callable[[], bool] | None = None
    """Closes copies that this process has open and may open again; false if there were none."""
    urgent: bool = True
    """Whether a reader waits: then it exceeds the bound rather than fail where all else is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    path: Path
    size: int
    size_on_disk: int
    opened_ns: int


class Room:
    """The bytes of one cache folder."""

    def __init__(self, folder: Path, *, max_bytes: int | None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._warned = False

    @property
    def _lock(self) -> Path:
        return self._folder / ".lock"

    def publish(self, partial: str, copy: Path) -> None:
        """Gives a file that is written whole its name, while nobody counts: in the midst of it, it would be missed."""
        with locked(self._lock):
            os.replace(partial, copy)

    def reserve(self, file: IO[bytes], num_bytes: int, claim: Claim) -> None:
        """Lets a file that is being written grow to `num_bytes`: it has that size from now on, for others to count."""
        size = os.fstat(file.fileno()).st_size
        if num_bytes <= size:
            return
        with locked(self._lock):
            fits = self._grow(file, size, num_bytes, claim)
        if not fits and not self._warned:
            self._warned = True
            log.warning(
                "%s holds more than its bound: all of it is being read at once; raise data.cache_size",
                self._folder,
            )

    def _grow(self, file: IO[bytes], size: int, num_bytes: int, claim: Claim) -> bool:
        limit = self._limit(self._copies())
        if num_bytes > limit:
            raise DataError(
                f"a shard of {num_bytes:,} bytes or more does not fit the cache {str(self._folder)!r}, which may hold "
                f"{limit:,}: raise data.cache_size, or name a folder with more space in $MIRADA_CACHE"
            )
        if size:  # unpacking; the next pieces are not to ask again
            num_bytes = max(num_bytes, min(size + _STEP, limit))
        fits = self._make_room(num_bytes - size, limit, claim.keep)
        while not fits and claim.release is not None and claim.release():
            fits = self._make_room(num_bytes - size, limit, claim.keep)
        if not fits and not claim.urgent:
            raise NoRoomError
        os.ftruncate(file.fileno(), num_bytes)
        return fits

    def _make_room(self, missing: int, limit: int, keep: Collection[str]) -> bool:
        copies = self._copies()
        excess = sum(copy.size for copy in copies) + missing - limit
        for copy in sorted(copies, key=lambda copy: copy.opened_ns):
            if excess <= 0:
                break
            if copy.path.name not in keep and copy.path.suffix != PARTIAL and remove_unlocked(copy.path):
                excess -= copy.size
        return excess <= 0

    def _limit(self, copies: list[_Copy]) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        # Half of what is free without them: they never take more than they leave to others.
        disk = os.statvfs(self._folder)
        return (disk.f_bavail * disk.f_frsize + sum(copy.size_on_disk for copy in copies)) // 2

    def _copies(self) -> list[_Copy]:
        copies = []
        for path in self._folder.iterdir():
            if path.suffix == PARTIAL and remove_unlocked(path):
                continue  # its writer died
            if path.suffix in (".tar", PARTIAL) and (copy := _look_at(path)) is not None:
                copies.append(copy)
        return copies


def _look_at(path: Path) -> _Copy | None:
    try:
        status = path.stat()
    except FileNotFoundError:  # removed since the folder was listed
        return None
    return _Copy(
        path=path, size=status.st_size, size_on_disk=status.st_blocks * 512, opened_ns=status.st_mtime_ns
    )
