"""Errand: what rank 0 does alone, be it for hours, while the other ranks wait as long as it takes.

    rank 0:  work in a thread ......................... done
    all:     agree  agree  agree  agree  agree  agree  agree      every few seconds: done? got further?

One collective at its end would meet the time limit of the process group, and watchdogs would take the wait for a hang.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from engine.world import World

Work = Callable[[TextIO], str | None]
"""Writes to what it is given as it gets on; returns what went wrong, in words."""

_EVERY_S = 2.0


def run_errand(
    work: Work, world: World, *, on_progress: Callable[[], None], every_s: float = _EVERY_S
) -> str | None:
    """Does the work on rank 0 and returns what it returned, on every rank; all ranks together.

    `on_progress` is called by the waiting thread of each rank when the work has written something since it was last
    asked: a work that hangs is not passed off as one that is slow. What it raises is raised on rank 0.
    """
    errand = _Errand(work) if world.is_main else None
    length = 0
    while True:
        state = world.broadcast(None if errand is None else errand.wait(every_s))
        assert state is not None  # rank 0's
        if state.length > length:
            length = state.length
            on_progress()
        if state.ended:
            return state.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    ended: bool
    length: int
    """Characters written so far."""
    problem: str | None


class _Errand:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._said = io.StringIO()
        self._problem: str | None = None
        self._error: BaseException | None = None
        # A daemon: a process that ends by an error does not wait for it.
        self._thread = threading.Thread(target=self._run, name="errand", daemon=True)
        self._thread.start()

    def wait(self, at_most_s: float) -> _State:
        """How it stands at its end, or after so many seconds."""
        self._thread.join(at_most_s)
        ended = not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return _State(ended=ended, length=self._said.tell(), problem=self._problem)

    def _run(self) -> None:
        try:
            self._problem = self._work(self._said)
        except BaseException as error:  # raised where it is waited for
            self._error = error
