"""How long a rank is let be, by a clock that the test turns; real ranks that hang are in test_lifeline."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.survival import watchdog as module
from engine.survival.lifeline import Lifeline
from engine.survival.watchdog import COMMUNICATING, Watchdog
from engine.world import ALONE
from tests.support.tracked_run import wait_for


class Clock:
    """Stands still until it is turned; counts how often it was looked at."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        return self._now_s

    def turn_to(self, now_s: float) -> None:
        """Returns when the watchdog has seen it, and done what follows."""
        self._now_s = now_s
        before = self._looks
        wait_for(lambda: self._looks >= before + 2, "another look at the clock")


@pytest.mark.parametrize(("doing", "limit_s"), [("in forward", 1.0), (COMMUNICATING, 1.2)])
def test_a_rank_that_may_only_be_waiting_is_let_be_until_the_one_that_hangs_has_spoken(
    doing: str, limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, barked = Clock(), threading.Event()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, strftime=time.strftime))
    last_resort = SimpleNamespace(
        dump_traceback_later=lambda *_, **__: None, cancel_dump_traceback_later=lambda: None
    )
    monkeypatch.setattr(
        module, "faulthandler", last_resort
    )  # goes by another clock, and would end this process
    monkeypatch.setattr(Watchdog, "_bark", lambda watchdog, record: barked.set())
    watchdog = Watchdog(Lifeline(ALONE), timeout_s=1.0, stacks=tmp_path / "stacks")
    with watchdog.guarding(lambda reason: None):
        watchdog.beat(7, doing)
        clock.turn_to(limit_s - 0.01)
        assert not barked.is_set()
        clock.turn_to(limit_s + 0.01)
        assert barked.is_set()
