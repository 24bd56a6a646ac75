"""EventLog: the append-only record of a run, one JSON object per line; everything else follows it."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class EventLog:
    """Appends events to a file; one writer, rank 0, by any of its threads. Without a path it keeps none.

    A full disk does not stop a run: what does not fit waits in memory, and is written in its order when it does.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd: int | None = None
        self._waiting = b""
        self._turn = threading.Lock()
        if path is not None:
            cut_torn_line(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one event as one line, visible to followers as soon as this returns."""
        if self._fd is None:
            return
        event = {"time": round(time.time(), 3), "kind": kind, **fields}
        line = (json.dumps(_plain(event), allow_nan=False) + "\n").encode()
        with self._turn:
            was_full = bool(self._waiting)
            self._waiting += line
            self._write()
            is_full = bool(self._waiting)
        if is_full and not was_full:
            log.warning("the disk of %s is full: events wait in memory, until it is not", self._path)

    def flush(self) -> None:
        """Returns when all events are on the disk."""
        if self._fd is not None:
            with self._turn:
                self._write()
            os.fsync(self._fd)

    def close(self) -> None:
        """Flushes and closes; further events are an error."""
        if self._fd is not None:
            self.flush()
            os.close(self._fd)
            self._fd = None
        if self._waiting:
            log.error("%d bytes of events are lost: the disk of %s is full", len(self._waiting), self._path)

    def _write(self) -> None:
        """Writes what there is, as much of it as fits."""
        try:
            while self._fd is not None and self._waiting:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log in order; a line that is still being written is left out."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


def cut_torn_line(path: Path) -> None:
    """Takes back the line a kill left half-written: no follower has read it, since it has no end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def _plain(value: Any) -> Any:
    """Numbers that JSON cannot write (NaN, infinity) are left out of mappings."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not _is_not_finite(v)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
