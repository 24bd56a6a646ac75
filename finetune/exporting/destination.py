"""Where an export goes: a new file or folder that appears whole or not at all."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.base import ConfigError


@contextmanager
def new_place(destination: Path, *, told_by: str | None = None) -> Iterator[Path]:
    """A path beside `destination` to write to, which takes its place when all went well; ConfigError if it is taken.

    With `told_by` it may be taken by an earlier export of the same, which stays: one whose folder of this name holds
    the files that were written.
    """
    is_taken = destination.exists() and (not destination.is_dir() or any(destination.iterdir()))
    if is_taken and (told_by is None or not destination.is_dir()):
        raise ConfigError(f"{str(destination)!r} exists already: give a new name, or remove it first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: programs tell the kind of a file by it.
    aside = destination.with_name(f".{os.getpid()}.{destination.name}")
    try:
        yield aside
        if is_taken and told_by is not None:
            _refuse_another(aside / told_by, destination, told_by)
            return
        if destination.is_dir() and aside.is_file():
            destination.rmdir()
        aside.replace(destination)  # takes the place of an empty folder too
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)


def differing_files(folder: Path, other: Path) -> list[str]:
    """Files of a folder, by path, that another has not, or not byte for byte."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    _, differing, missing = filecmp.cmpfiles(folder, other, names, shallow=False)
    return differing + missing


def _refuse_another(written: Path, destination: Path, told_by: str) -> None:
    differing = differing_files(written, destination / told_by)
    if differing:
        raise ConfigError(
            f"{str(destination)!r} exists already, and is another export: it differs in {', '.join(differing)}; give a "
            "new name, or remove it first"
        )
