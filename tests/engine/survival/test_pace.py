"""Which rank the others wait for."""

from __future__ import annotations

import time

import pytest

from engine.survival.pace import Pace, Share, find_stragglers
from engine.world import World


def share(rank: int, data_wait_s: float, compute_s: float) -> Share:
    return Share(rank=rank, host=f"n{rank}", data_wait_s=data_wait_s, compute_s=compute_s)


def test_the_slow_rank_is_named_with_what_it_does_with_its_time() -> None:
    shares = [share(0, 0.01, 0.1), share(1, 0.3, 0.1), share(2, 0.0, 0.1), share(3, 0.02, 0.1)]
    (straggler,) = find_stragglers(shares, step_s=0.7)
    assert straggler.share.rank == 1 and straggler.median_s == pytest.approx(0.11)
    assert str(straggler).startswith("rank 1 (host n1) is slow: the others wait 0.290 s for it in each step")
    assert "75% is waiting for data and 25% computing" in str(straggler)


def test_of_two_ranks_either_can_be_slow_and_two_slow_ones_come_slowest_first() -> None:
    assert [s.share.rank for s in find_stragglers([share(0, 0, 0.3), share(1, 0, 0.1)], step_s=0.5)] == [0]
    several = [share(0, 0, 0.2), share(1, 0, 0.1), share(2, 0, 0.3), share(3, 0, 0.1), share(4, 0, 0.1)]
    assert [s.share.rank for s in find_stragglers(several, step_s=0.5)] == [2, 0]


@pytest.mark.parametrize(("slow_s", "step_s", "found"), [(0.124, 0.2, 0), (0.126, 0.2, 1), (0.126, 3.0, 0)])
def test_small_differences_and_those_that_cost_nothing_are_not_reported(
    slow_s: float, step_s: float, found: int
) -> None:
    shares = [share(0, 0, 0.1), share(1, 0, 0.1), share(2, 0, slow_s)]
    assert len(find_stragglers(shares, step_s=step_s)) == found


def test_the_first_step_is_not_timed_and_the_others_are_averaged(world: World) -> None:
    pace = Pace(world)
    for wait_s in (9.0, 0.1, 0.3):
        pace.waited(wait_s)
        pace.step_done()
    (own,) = pace.shares()
    assert own.data_wait_s == pytest.approx(0.2)
    assert pace.shares()[0].own_s == 0.0


@pytest.mark.parametrize("gathers", [False, True])
def test_what_waits_for_others_at_stage_3_is_not_taken_for_own_work(gathers: bool, world: World) -> None:
    pace = Pace(world, gathers_in_forward=gathers)
    pace.step_done()
    with pace.computing():
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass
    pace.step_done()
    compute_s = pace.shares()[0].compute_s
    assert compute_s == 0.0 if gathers else compute_s >= 0.01
