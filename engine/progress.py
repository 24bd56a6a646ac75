"""Progress: what rank 0 shows of a run; a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows steps, loss, images/s and time left; `quiet` (ranks other than 0) shows nothing."""

    def __init__(self, title: str, *, quiet: bool = False, console: Console | None = None) -> None:
        self._title = title
        self._quiet = quiet
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._total = 0
        self._first = 0
        self._start = time.monotonic()

    def begin(self, step: int, total: int) -> None:
        """The run goes on at `step` of `total`."""
        self._total, self._first, self._start = total, step, time.monotonic()
        if self._quiet or not self._console.is_terminal:
            return
        self._bar = Bar(
            TextColumn(self._title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(self._title, total=total, completed=step, shown="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """The means of the last interval."""
        shown = (
            f"loss {values.get('train/loss', float('nan')):.4f}  {values['perf/images_per_s']:,.0f} images/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            self.note(f"step {step}/{self._total}  {shown}  {self._left(step)} left")

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._console.print(f"{self._title}: {text}", markup=False)

    def end(self) -> None:
        """Takes the bar down; what was noted stays."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, step: int) -> str:
        done = max(step - self._first, 1)
        left_s = round((time.monotonic() - self._start) / done * (self._total - step))
        hours, rest = divmod(left_s, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
