"""Who trains in a run folder: the holder of its lock, asked without taking it."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_NAME = ".lock"
_FLOCK = "hhqqi"
"""struct flock of Linux: type, whence, start, length (0: to the end), process."""


def training_process(run_folder: Path) -> int | None:
    """Process id of rank 0; 0 where nobody holds the folder, None where that cannot be told from here.

    NOTE: over a network file system the id may be one of another host, and a file system without locks tells nothing.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (run_folder / _NAME).open("r+b") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except OSError:
        return None
    kind, _, _, _, process = struct.unpack(_FLOCK, answer)
    return 0 if kind == fcntl.F_UNLCK else int(process)
