"""Files and folders that are on the disk when a call returns, whatever happens to the machine afterwards."""

from __future__ import annotations

import os
from pathlib import Path


def flush_file(path: Path) -> None:
    """Returns when the file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Returns when the folder's entries (names, renames) are on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in place of a former one."""
    aside = path.with_name(f".{path.name}-partial")
    aside.write_text(text)
    flush_file(aside)
    os.replace(aside, path)
    flush_folder(path.parent)
