"""Progress on stderr: a rich bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 10.0


class ProgressBar:
    """Counts `total` samples (or other units) of a named task; used as a context manager."""

    def __init__(self, title: str, total: int, *, unit: str = "samples") -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, 0
        self._began = self._last_line = time.monotonic()
        self._bar = _rich_bar() if sys.stderr.isatty() else None
        self._task = self._bar.add_task(title, total=total) if self._bar else None

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def update(self, done: int) -> None:
        """Says how many are done now."""
        self._done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._last_line >= _PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self._write_line()

    def report(self, done: int, total: int) -> None:
        """The same for callers that pass the total along."""
        self.update(done)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._write_line()

    def _write_line(self) -> None:
        elapsed_s = max(time.monotonic() - self._began, 1e-9)
        counted = f"{self._done:,} of {self._total:,} {self._unit}"
        sys.stderr.write(f"{self._title}: {counted}, {self._done / elapsed_s:,.0f}/s, {elapsed_s:.0f} s\n")


def _rich_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
