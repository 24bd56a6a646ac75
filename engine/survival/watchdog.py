"""Watchdog: a rank that makes no progress any more says where it hangs, shows the stacks of its threads, and ends."""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.survival.lifeline import Lifeline, Lost, end_process

log = logging.getLogger(__name__)

EXIT_HUNG = 70
"""Exit code of a rank that hung (EX_SOFTWARE): run the same command again."""

COMMUNICATING = "in backward and step, where ranks wait for one another"
"""What a rank does that may only be waiting for the one that hangs."""

_PATIENCE = 0.2
"""By so much of the limit a rank that may only be waiting lets the one that hangs speak first."""
_STDERR = 2


class Watchdog:
    """Watches the main thread's progress from a thread of its own; a beat costs the loop a microsecond.

    The dumps go to `stacks` and to stderr. All other ranks then end too, through the lifeline, and dump theirs.
    """

    def __init__(self, lifeline: Lifeline, *, timeout_s: float, stacks: Path) -> None:
        self._lifeline = lifeline
        self._timeout_s = timeout_s
        self._stacks = stacks
        self._at = time.monotonic()
        self._step = 0
        self._doing = "starting"

    def beat(self, step: int, doing: str) -> None:
        """The main thread got on: `step` steps are done, and now it is `doing` something."""
        self._at, self._step, self._doing = time.monotonic(), step, doing

    @contextmanager
    def guarding(self, record: Callable[[str], None]) -> Iterator[None]:
        """Watches what is within; what ends it, here or on another rank, is named by its error and recorded."""

        ended = threading.Event()
        self._lifeline.on_news, self._lifeline.before_end = self._dump_if_it_hangs, record
        self.beat(self._step, "starting")
        threading.Thread(target=self._watch, args=(ended, record), name="watchdog", daemon=True).start()
        try:
            yield
        except BaseException as error:
            cause = self._lifeline.explain(error)
            if cause is not error:
                raise cause from error
            raise
        finally:
            ended.set()
            self._lifeline.on_news, self._lifeline.before_end = _do_nothing, _do_nothing

    def _watch(self, ended: threading.Event, record: Callable[[str], None]) -> None:
        # NOTE: a thread of Python's cannot run while C code hangs and holds the interpreter; faulthandler's can.
        last_resort_s = 2.0 * self._timeout_s
        while not ended.wait(min(1.0, self._timeout_s / 10)):
            faulthandler.dump_traceback_later(last_resort_s, exit=True, file=_STDERR)
            waiting = self._doing == COMMUNICATING
            limit_s = self._timeout_s * (1.0 + _PATIENCE if waiting else 1.0)
            if time.monotonic() - self._at > limit_s:
                self._bark(record)
        faulthandler.cancel_dump_traceback_later()

    def _bark(self, record: Callable[[str], None]) -> None:
        why = f"hangs: no progress for {self._timeout_s:g} s after step {self._step}, {self._doing}"
        reason = f"{self._lifeline.me} {why}"
        self._dump(reason)
        log.error("%s; the stacks of its threads are in %s", reason, self._stacks)
        self._lifeline.announce(why, hangs=True)
        record(reason)
        end_process(EXIT_HUNG)

    def _dump_if_it_hangs(self, lost: Lost) -> None:
        """What this rank does while another hangs is half of the picture."""
        if lost.hangs:
            self._dump(str(lost))

    def _dump(self, reason: str) -> None:
        self._stacks.parent.mkdir(parents=True, exist_ok=True)
        with self._stacks.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {reason}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        sys.stderr.flush()
        faulthandler.dump_traceback(_STDERR, all_threads=True)


def _do_nothing(_: object) -> None:
    pass
