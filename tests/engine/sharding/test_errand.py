"""What rank 0 does alone, on one rank; with others that wait in tests/distributed/test_elastic.py."""

from __future__ import annotations

import threading
import time
from typing import TextIO

import pytest

from engine.sharding.errand import run_errand
from engine.world import World


def test_what_the_work_returns_is_returned_and_whoever_waits_hears_that_it_gets_on(world: World) -> None:
    heard = [threading.Event() for _ in range(3)]
    calls: list[str] = []

    def work(said: TextIO) -> str:
        for number, event in enumerate(heard):
            said.write(f"part {number}\n")
            assert event.wait(30.0)  # it goes on when the one that waits has heard of this part
        return "the disk is full"

    def on_progress() -> None:
        heard[len(calls)].set()
        calls.append(threading.current_thread().name)

    assert run_errand(work, world, on_progress=on_progress, every_s=0.01) == "the disk is full"
    assert calls == [threading.main_thread().name] * 3


def test_a_work_that_says_nothing_is_not_passed_off_as_one_that_gets_on(world: World) -> None:
    calls = []

    def work(said: TextIO) -> None:
        said.write("begun\n")
        time.sleep(0.3)  # thirty looks

    assert run_errand(work, world, on_progress=lambda: calls.append("heard"), every_s=0.01) is None
    assert calls == ["heard"]


def test_what_the_work_raises_is_raised_by_the_one_that_waits(world: World) -> None:
    def work(said: TextIO) -> None:
        raise ZeroDivisionError("of tensors")

    with pytest.raises(ZeroDivisionError, match="of tensors"):
        run_errand(work, world, on_progress=lambda: None)
