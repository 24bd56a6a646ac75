"""Writer: takes over files that are in host memory, and writes them in a thread while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from data_pipeline.shard import checksum
from data_pipeline.whole_file import sync_folder
from engine.saving.durable import flush_file, naming_disk_errors

Result = TypeVar("Result")


class Writer(Protocol):
    """Takes over what is to be written; whoever calls `put` has copied it to host memory before."""

    def put(self, path: Path, write: Callable[[Path], None]) -> None:
        """Lets `write(path)` be called later, in another thread, in an existing folder; it issues no collective."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that is on the disk."""

    path: Path
    size: int
    """Bytes."""
    digest: str
    """XXH3, 128 bits, in hexadecimal."""


class FileQueue:
    """The files of one save on this rank, in the order they were put; nothing is written before `write_all`."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Callable[[Path], None]]] = []

    def put(self, path: Path, write: Callable[[Path], None]) -> None:
        """Keeps what `write` holds until the file is written."""
        self._files.append((path, write))

    def write_all(self) -> list[Written]:
        """Writes and fingerprints every file, each on the disk when the next begins; for a thread, and once.

        Raises OSError when the disk refuses, and what else a writer raises.
        """
        written = []
        self._files.reverse()
        while self._files:
            if not threading.main_thread().is_alive():
                raise RuntimeError("the process ends, and nobody will publish these files")
            written.append(_write(*self._files.pop()))  # no name holds the host copy any longer
        for folder in sorted({file.path.parent for file in written}):
            sync_folder(folder)
        return written


def in_background(job: Callable[[], Result], *, name: str) -> Future[Result]:
    """Runs a job in a thread of its own; what it returns, or raises, waits in the future.

    NOTE: not a daemon, which the interpreter tears down in the middle of a C++ call: the process ends after the job.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name).start()
    return future


def _write(path: Path, write: Callable[[Path], None]) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_disk_errors(path):
        write(path)
    flush_file(path)
    return Written(path=path, size=path.stat().st_size, digest=checksum(path))
