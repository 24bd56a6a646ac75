"""The private folder of a run's submissions: what lies in it is code that jobs run, so nobody else may write there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from configs.base import ConfigError
from launch.submission.record import launch_folder

_PRIVATE = 0o700
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private_folder(run_folder: Path) -> Path:
    """Makes RUN/launch with mode 0700, and RUN where it is missing; ConfigError where others may write in either."""
    if not run_folder.exists():
        _make_ours(run_folder)
    refuse_foreign(run_folder)
    folder = launch_folder(run_folder)
    folder.mkdir(mode=_PRIVATE, exist_ok=True)
    refuse_foreign(run_folder)
    return folder


def refuse_foreign(run_folder: Path) -> None:
    """Raises ConfigError unless RUN and RUN/launch, as far as they exist, are ours and nobody else may write there."""
    for path in (run_folder, launch_folder(run_folder)):
        problem = _problem(path)
        if problem is not None:
            raise ConfigError(
                f"{problem}: what a submission keeps there is code that your jobs run (pickles, a copy of the source); "
                f"{_remedy(path)}"
            )


def _make_ours(path: Path) -> None:
    """Like mkdir -p, but without the write permission that a umask of 002 leaves the group."""
    missing = [path, *(parent for parent in path.parents if not parent.exists())]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~_OTHERS_WRITE)


def _problem(path: Path) -> str | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode) and path.name == launch_folder(path.parent).name:
        return f"{str(path)!r} is a link"
    if not path.is_dir():
        return f"{str(path)!r} is a file, not a folder"
    found = path.stat()
    if found.st_uid != os.getuid():
        return f"{str(path)!r} belongs to another user (number {found.st_uid})"
    if found.st_mode & _OTHERS_WRITE:
        return f"others may write in {str(path)!r} (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _remedy(path: Path) -> str:
    if path.is_dir() and path.stat().st_uid == os.getuid() and not path.is_symlink():
        return f"look what is in it, then close it: chmod go-w {path}"
    return "name another folder with --out"
