"""Ports for servers of tests: named before anything listens on them, and still free when it does, seconds later.

They come from below those that the system hands out by itself, and a lock keeps each from the other processes of the
suite for as long as this one lives.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from functools import cache

from launch.submission import rendezvous

_kept: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on and that is given to no other test."""
    while (port := rendezvous.free_port()) in _kept or not _keep(port):
        pass
    _kept.add(port)
    return port


def _keep(port: int) -> bool:
    try:
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _locks() -> int:
    """A file of which each byte stands for a port. NOTE: closing it would give up the locks of this process."""
    path = os.path.join(tempfile.gettempdir(), f"mirada-test-ports.{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
