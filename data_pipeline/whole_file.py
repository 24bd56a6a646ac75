"""Small files that appear whole or not at all, and last through a power cut."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

PARTIAL = ".partial"


def path_aside(final: Path) -> Path:
    """Where this process writes what becomes `final`.

    Host and thread keep tasks apart, and a writer that outlived its killed parent from its successor.
    """
    return final.with_name(f".{final.name}.{socket.gethostname()}.{threading.get_native_id()}{PARTIAL}")


def write_whole(final: Path, content: str | bytes) -> None:
    """Writes a file aside, syncs it and renames it; text is written as UTF-8."""
    aside = path_aside(final)
    try:
        with open(aside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
