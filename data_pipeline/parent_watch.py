"""Ends a worker process when the process that asked for it is gone, however it went."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection


def end_with_parent() -> None:
    """Called in a worker: a thread waits for the parent's end, and then ends this process at once.

    NOTE: a worker is forked by the fork server, which lives on while its workers do: watching the process that forked
    it, as torch does, would keep both for ever.
    """
    threading.Thread(target=_watch, name="end_with_parent", daemon=True).start()


def _watch() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(0)
