"""Files that are on the disk when a call returns, and the disk's own error where a library hides it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_PROBE = bytes(1 << 20)


def flush_file(path: Path) -> None:
    """Returns when the file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Raises the OSError (full disk, quota, broken disk) behind a failure of torch or safetensors to write a file.

    Safetensors has the number in its message. NOTE: torch says nothing of it: there the disk is asked again, by a
    megabyte more in the same file. If it takes that, the error was another one and stays what it is.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"[(]os error (\d+)[)]", str(error))
        if number is None:
            raise
        raise _disk_error(int(number.group(1)), path) from error
    except RuntimeError:
        _append_probe(path)
        raise


def _append_probe(path: Path) -> None:
    try:
        with path.open("ab") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _disk_error(error.errno or 0, path) from error


def _disk_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
