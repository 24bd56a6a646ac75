"""Files that are on the disk when a call returns, and the error of a disk that is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEARLY_NOTHING = 1 << 20
"""Bytes free below which a failed write is put down to a full disk."""


def flush_file(path: Path) -> None:
    """Returns when the file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Raises the OSError of a full disk where torch's file writers raise a RuntimeError that does not say so."""
    try:
        yield
    except RuntimeError as error:
        if shutil.disk_usage(folder).free > _NEARLY_NOTHING:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
