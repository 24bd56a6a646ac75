"""`mirada logs`: the end of what a rank said, in its log and to SLURM; with --follow what it goes on to say."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.base import ConfigError
from launch.following.run_state import RunWatch, newest_job
from launch.submission.record import launch_folder, read_submission

_POLL_S = 0.5
_LOOK_S = 10.0  # between two questions to SLURM whether the run goes on
_TAIL_BYTES = 4096  # enough for a dozen lines; more is read where that was too few


def show_logs(run_folder: Path, *, ranks: Sequence[int], num_lines: int, follow: bool) -> None:
    """Prints the last lines of each file in which one of the ranks speaks; ConfigError where none is there."""
    printer = _Printer()
    ends: dict[Path, int] = {}
    for path in log_files(run_folder, ranks):
        text, ends[path] = last_lines(path, num_lines)
        printer.show(path, text)
    if not ends and not follow:
        raise ConfigError(
            f"no log of rank {' or '.join(map(str, ranks))} in {str(run_folder)!r}: it has not begun, see mirada status"
        )
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(run_folder, ranks, ends, printer)


def log_files(run_folder: Path, ranks: Sequence[int]) -> list[Path]:
    """What the ranks wrote, and what SLURM kept of their output in the newest job, the program's own log last."""
    submission = read_submission(run_folder)
    job_id, folders = newest_job(submission), [run_folder]
    if submission is not None and submission.parent is not None:
        folders.append(submission.parent)  # keeps the output of all tasks of its array
    paths: list[Path] = []
    for rank in ranks:
        paths += [launch_folder(folder) / f"{job_id}_{rank}_log.out" for folder in folders if job_id]
        paths.append(run_folder / "logs" / f"rank_{rank}.log")
    return [path for path in paths if path.is_file() and path.stat().st_size]


def last_lines(path: Path, num_lines: int) -> tuple[str, int]:
    """The last lines of a file of any size, and the byte at which they end: the file may be growing."""
    with path.open("rb") as file:
        end, size = file.seek(0, 2), _TAIL_BYTES
        while True:
            start = max(0, end - size)
            file.seek(start)
            lines = file.read(end - start).splitlines(keepends=True)
            if start == 0 or len(lines) > num_lines:
                return b"".join(lines[-num_lines:] if num_lines else []).decode(errors="replace"), end
            size *= 4


class _Printer:
    """Says which file the lines are from whenever that changes."""

    def __init__(self) -> None:
        self._newest: Path | None = None

    def show(self, path: Path, text: str) -> None:
        if not text:
            return
        if path != self._newest:
            sys.stdout.write(f"==> {path} <==\n")
            self._newest = path
        sys.stdout.write(text)
        sys.stdout.flush()


def _follow(run_folder: Path, ranks: Sequence[int], ends: dict[Path, int], printer: _Printer) -> None:
    """Until the run has ended, over all its restarts."""
    watch = RunWatch([run_folder])
    looked_at = float("-inf")
    while True:
        is_over = False
        if time.monotonic() - looked_at > _LOOK_S:
            is_over = watch.look()[0].is_final  # before reading: what it said last is shown
            looked_at = time.monotonic()
        for path in log_files(run_folder, ranks):
            printer.show(path, _read_on(path, ends))
        if is_over:
            return
        time.sleep(_POLL_S)


def _read_on(path: Path, ends: dict[Path, int]) -> str:
    with path.open("rb") as file:
        file.seek(ends.get(path, 0))
        text = file.read()
        ends[path] = file.tell()
    return text.decode(errors="replace")
