"""StopSignal: a signal sets a flag; all ranks agree on it at a step boundary, save together and exit."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from data_pipeline.batch import Batch
from engine.world import World

EXIT_STOPPED = 75
"""Exit code after SIGTERM, SIGUSR1 or SIGUSR2: saved, run the same command again (EX_TEMPFAIL)."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C: saved, run the same command again."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(Exception):
    """A signal reached a rank in the middle of something that is not worth finishing first; raised on all ranks."""


class StopSignal:
    """Remembers the first signal that asked this process to stop; a context manager that restores the handlers.

    A second Ctrl-C does not wait for the step boundary: it raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._received: int = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in _SIGNALS:
            self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def agree(self, world: World) -> signal.Signals | None:
        """The signal that reached any rank, the same on all; every rank asks at the same step boundaries."""
        number = world.max(self._received)
        return signal.Signals(number) if number else None

    def between(self, batches: Iterable[Batch], world: World) -> Iterable[Batch]:
        """The same batches for an evaluation, which ends in Stopped on all ranks when one is asked to stop.

        Every rank has as many batches as the others. NOTE: an agreement on the host after each.
        """
        return _Interruptible(batches=batches, stop=self, world=world)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interruptible:
    batches: Iterable[Batch]
    stop: StopSignal
    world: World

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield batch
            if self.stop.agree(self.world) is not None:
                raise Stopped


def exit_code(stopped_by: signal.Signals) -> int:
    """What a program that was stopped by this signal, and saved, exits with."""
    return EXIT_INTERRUPTED if stopped_by == signal.SIGINT else EXIT_STOPPED
