"""Run folders below what the user named: a run, or a folder that holds runs, such as a sweep's or a pipeline's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.base import ConfigError
from launch.following.event_tail import LOG_NAME
from launch.submission.record import read_submission

_DEPTH = 3
"""Levels below a named folder at which runs are looked for."""


def find_runs(named: Sequence[Path]) -> list[Path]:
    """The run folders, each once and in order; ConfigError naming every folder in which there is none."""
    found: dict[Path, None] = {}
    empty = []
    for folder in named:
        runs = list(_runs_below(folder, _DEPTH))
        found.update(dict.fromkeys(runs))
        if not runs:
            empty.append(repr(str(folder)))
    if empty:
        raise ConfigError(
            f"no run in {' and '.join(empty)}: name a run folder (one with {LOG_NAME}, or with a submission in it) "
            "or a folder that holds some"
        )
    return list(found)


def single_run(folder: Path) -> Path:
    """The folder itself; ConfigError if it is not that of one run."""
    if not _is_run(folder):
        raise ConfigError(
            f"{str(folder)!r} is not a run folder: it has no {LOG_NAME}, and nothing was submitted from it"
        )
    return folder


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif depth > 0 and folder.is_dir():
        with os.scandir(folder) as entries:
            below = sorted(
                entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
        for path in below:
            yield from _runs_below(Path(path), depth - 1)


def _is_run(folder: Path) -> bool:
    if (folder / LOG_NAME).is_file():
        return True
    submission = read_submission(folder)
    return submission is not None and submission.kind == "run"
