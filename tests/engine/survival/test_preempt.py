"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal

import pytest

from engine.survival.preempt import Stopped, StopSignal, exit_code
from engine.world import World
from tests.support.tiny_run import MemoryLoader


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_sets_a_flag_and_nothing_else(number: signal.Signals, world: World) -> None:
    with StopSignal() as stop:
        assert stop.agree(world) is None
        os.kill(os.getpid(), number)
        assert stop.agree(world) is number


def test_the_first_signal_is_the_reason(world: World) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agree(world) is signal.SIGUSR2


def test_an_evaluation_ends_between_two_batches_when_a_signal_comes(world: World) -> None:
    batches, seen = MemoryLoader(world), 0
    with StopSignal() as stop:
        assert len(list(stop.between([batches.batch(0), batches.batch(1)], world))) == 2
        with pytest.raises(Stopped):
            for _ in stop.between([batches.batch(0), batches.batch(1), batches.batch(2)], world):
                seen += 1
                if seen == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == 2


def test_a_second_ctrl_c_does_not_wait() -> None:
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_exit_codes_say_resume_me_or_interrupted() -> None:
    assert [exit_code(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)] == [
        75,
        75,
        75,
        130,
    ]
