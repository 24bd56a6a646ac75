"""What the other ranks do when one dies, fails or hangs: real processes, real signals, no model."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from engine.survival.lifeline import EXIT_LOST
from engine.survival.watchdog import EXIT_HUNG
from tests.support.run_distributed import Ranks, start_ranks

PROGRAM = "tests/support/lifeline_program.py"
ENDS_WITHIN_S = 120.0
"""Seconds where nothing else is running, and far less than ten minutes, after which a collective gives up anyway."""

pytestmark = pytest.mark.slow


def start(out: Path, what: str, victim: int, *, world_size: int = 3) -> Ranks:
    ranks = start_ranks([PROGRAM, str(out), what, str(victim)], world_size=world_size)
    ready = [out / f"ready-{rank}" for rank in range(world_size)]
    ranks.wait_until(lambda: all(path.exists() and path.read_text() for path in ready))
    return ranks


def named(out: Path, rank: int) -> str:
    return f"rank {rank} (host {socket.gethostname()}, process {(out / f'ready-{rank}').read_text()})"


@pytest.mark.parametrize(("what", "victim"), [("sleeps", 1), ("sleeps", 0), ("deaf", 0)])
def test_when_a_rank_is_killed_the_others_name_it_and_end(what: str, victim: int, tmp_path: Path) -> None:
    ranks = start(tmp_path, what, victim)
    ranks.processes[victim].send_signal(signal.SIGKILL)
    codes = ranks.wait(timeout_s=ENDS_WITHIN_S)
    for rank in {0, 1, 2} - {victim}:
        assert codes[rank] == EXIT_LOST, ranks.outputs[rank]
        assert f"{named(tmp_path, victim)} is gone" in ranks.outputs[rank]


def test_an_error_of_one_rank_is_told_to_all_and_its_own_traceback_stays(tmp_path: Path) -> None:
    ranks = start(tmp_path, "raises", 1, world_size=2)
    assert ranks.wait(timeout_s=ENDS_WITHIN_S) == [EXIT_LOST, 1]
    assert f"{named(tmp_path, 1)} failed: ValueError: a bad image, say" in ranks.outputs[0]
    assert "Traceback" in ranks.outputs[1] and "ValueError: a bad image, say" in ranks.outputs[1]


def test_a_rank_that_hangs_shows_its_stacks_and_is_the_one_that_is_named(tmp_path: Path) -> None:
    ranks = start(tmp_path, "hangs", 1)
    assert ranks.wait(timeout_s=ENDS_WITHIN_S) == [EXIT_LOST, EXIT_HUNG, EXIT_LOST]
    reason = f"{named(tmp_path, 1)} hangs: no progress for 3 s after step 7, in forward"
    assert all(reason in output for output in ranks.outputs)
    assert (tmp_path / "record-1").read_text() == reason
    for rank, function in ((1, "befall"), (0, "barrier"), (2, "barrier")):
        stacks = (tmp_path / f"rank_{rank}.stacks").read_text()
        assert reason in stacks and f"in {function}" in stacks and "Current thread" in stacks
