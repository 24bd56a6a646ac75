"""File locks between the processes of a node: all are flocks, which the kernel takes from a process that dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes and threads out of what `path` stands for; waits for its turn."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def writing(partial: Path, *, wait: bool) -> Iterator[IO[bytes] | None]:
    """A file that only this process writes, gone at the end unless it was renamed; None if another one had it.

    Without `wait` it is None while another one has it.
    """
    with open(partial, "r+b", opener=_create) as file:
        if not _become_writer(file, partial, wait=wait):
            yield None
            return
        try:
            yield file
        finally:
            if _is_at(file, partial):
                partial.unlink()


def share(file: IO[bytes]) -> int:
    """A descriptor of a file that `writing` gave, to be read from and kept; its lock becomes a shared one."""
    fcntl.flock(file, fcntl.LOCK_SH)
    return os.dup(file.fileno())


def open_shared(path: Path) -> int | None:
    """A descriptor with a shared lock on it; None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    # Should it be removed before this line, no harm is done: an open file stays readable, and goes when closed.
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def remove_unlocked(path: Path) -> bool:
    """Removes a file unless some process has it locked, shared or not."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


def _become_writer(file: IO[bytes], partial: Path, *, wait: bool) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return False
            # A shared lock is had as soon as the writer is done, though it keeps a shared one itself, or dead.
            fcntl.flock(file, fcntl.LOCK_SH)
            fcntl.flock(file, fcntl.LOCK_UN)
            if _is_at(file, partial):
                continue
        return _is_at(file, partial)


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _is_at(file: IO[bytes], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
