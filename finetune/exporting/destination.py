"""Where an export goes: a new file or folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.base import ConfigError


@contextmanager
def new_place(destination: Path) -> Iterator[Path]:
    """A path beside `destination` to write to, which takes its place when all went well; ConfigError if it is taken."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{str(destination)!r} exists already: give a new name, or remove it first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: programs tell the kind of a file by it.
    aside = destination.with_name(f".{os.getpid()}.{destination.name}")
    try:
        yield aside
        if destination.is_dir() and aside.is_file():
            destination.rmdir()
        aside.replace(destination)  # takes the place of an empty folder too
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
