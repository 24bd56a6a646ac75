from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.order.plan import Plan, eval_batches, rank_slots

lengths_st = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 0)


@st.composite
def makers_of_plans(draw: st.DrawFn) -> Callable[[], Plan]:
    lengths = np.array(draw(lengths_st), np.int64)
    global_batch = draw(st.integers(1, int(lengths.sum())))
    divisors = [count for count in range(1, global_batch + 1) if global_batch % count == 0]
    seed, window = draw(st.integers(0, 2**63)), draw(st.integers(1, 5))
    num_streams = draw(st.none() | st.sampled_from(divisors))
    return lambda: Plan(lengths, global_batch=global_batch, seed=seed, window=window, num_streams=num_streams)


def plans() -> st.SearchStrategy[Plan]:
    return makers_of_plans().map(lambda make_plan: make_plan())


def epoch_order(plan: Plan, epoch: int) -> np.ndarray:
    return np.concatenate([plan.batch(epoch, step) for step in range(plan.batches_per_epoch)])


def large_plan(seed: int = 0, **options: int) -> Plan:
    return Plan(np.full(32, 100), global_batch=64, seed=seed, **options)


@given(plans(), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_an_epoch_has_every_sample_at_most_once_and_leaves_out_only_the_remainder(
    plan: Plan, epoch: int
) -> None:
    order = epoch_order(plan, epoch)
    assert len(order) == plan.num_samples - plan.num_samples % plan.global_batch
    assert len(np.unique(order)) == len(order)
    assert order.min() >= 0
    assert order.max() < plan.num_samples


@given(makers_of_plans(), st.integers(0, 5), st.data())
@settings(max_examples=150, deadline=None)
def test_seeking_to_any_step_equals_iterating_to_it(
    make_plan: Callable[[], Plan], epoch: int, data: st.DataObject
) -> None:
    iterating, seeking = make_plan(), make_plan()
    step = data.draw(st.integers(0, seeking.batches_per_epoch - 1))
    iterated = [iterating.batch(epoch, earlier) for earlier in range(step + 1)][-1]
    np.testing.assert_array_equal(seeking.batch(epoch, step), iterated)


@given(plans(), st.integers(1, 64), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_ranks_together_have_the_global_batch_whatever_their_number(
    plan: Plan, world_size: int, epoch: int
) -> None:
    if plan.global_batch % world_size:
        with pytest.raises(DataError, match=f"cannot be shared equally by {world_size} ranks"):
            rank_slots(plan.global_batch, 0, world_size)
        return
    step = plan.batches_per_epoch // 2
    shares = [
        plan.batch(epoch, step, rank_slots(plan.global_batch, rank, world_size)) for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {plan.global_batch // world_size}
    np.testing.assert_array_equal(np.concatenate(shares), plan.batch(epoch, step))


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    np.testing.assert_array_equal(epoch_order(large_plan(seed=3), 1), epoch_order(large_plan(seed=3), 1))
    assert (epoch_order(large_plan(seed=3), 1) != epoch_order(large_plan(seed=4), 1)).mean() > 0.9


def test_epochs_differ_in_order_and_in_what_they_leave_out() -> None:
    plan = Plan(np.array([1000]), global_batch=96, seed=0)
    first, second = epoch_order(plan, 0), epoch_order(plan, 1)
    assert (first != second).mean() > 0.9
    everything = set(range(1000))
    assert everything - set(first.tolist()) != everything - set(second.tolist())


def test_over_many_epochs_every_sample_of_a_single_shard_is_seen() -> None:
    plan = Plan(np.array([100]), global_batch=64, seed=0)
    seen = np.unique(np.concatenate([epoch_order(plan, epoch) for epoch in range(40)]))
    assert len(seen) == 100


def test_a_rank_reads_only_its_share_of_the_shards_when_it_has_whole_streams() -> None:
    plan = large_plan(window=2, num_streams=8)
    slots = rank_slots(64, 0, 8)
    positions = np.concatenate([plan.batch(0, step, slots) for step in range(plan.batches_per_epoch)])
    # An eighth of 32 shards, and the two that its part begins and ends within.
    assert len(np.unique(positions // 100)) <= 32 // 8 + 2


def test_a_step_reads_from_no_more_shards_than_its_windows_span() -> None:
    plan = large_plan(window=2, num_streams=4)
    for step in range(plan.batches_per_epoch):
        # Per stream two windows at most, each of two shards' length and so within four of them.
        assert len(np.unique(plan.batch(0, step) // 100)) <= 4 * 2 * 4


def test_with_one_window_a_batch_draws_from_all_shards_evenly() -> None:
    plan = Plan(np.full(8, 500), global_batch=400, seed=1)
    assert plan.num_streams == 1
    counts = np.stack([np.bincount(plan.batch(0, step) // 500, minlength=8) for step in range(10)])
    # 50 expected; the standard deviation of such a draw is 6.3.
    assert counts.min() > 15
    assert counts.max() < 90


@pytest.mark.parametrize(
    ("num_shards", "global_batch", "expected"),
    [(1, 256, 1), (8, 256, 1), (64, 256, 8), (1024, 4096, 64), (1024, 90, 45)],
)
def test_streams_are_the_largest_divisor_that_fills_a_window_each(
    num_shards: int, global_batch: int, expected: int
) -> None:
    assert (
        Plan(np.full(num_shards, 1000), global_batch=global_batch, seed=0, window=8).num_streams == expected
    )


def test_the_order_is_this_one_for_ever() -> None:
    # Written down once: a run resumed by a later version must go on in the order it began.
    plan = Plan(np.array([5, 3, 4]), global_batch=4, seed=7, window=2)
    assert [plan.batch(0, step).tolist() for step in range(3)] == [[0, 10, 9, 11], [8, 7, 4, 6], [1, 5, 2, 3]]


def test_fewer_samples_than_a_global_batch_is_an_error_that_says_what_to_lower() -> None:
    with pytest.raises(DataError, match=r"global batch of 12 .* there are 11; lower train.global_batch"):
        Plan(np.array([5, 6]), global_batch=12, seed=0)


def test_streams_that_do_not_divide_the_batch_are_an_error() -> None:
    with pytest.raises(DataError, match=r"data.streams = 5 does not divide the global batch of 64"):
        large_plan(num_streams=5)


def test_a_step_outside_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step 50 is outside the epoch's 0..49"):
        large_plan().batch(0, 50)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_evaluation_has_every_sample_once_and_ranks_have_equal_batches(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    ranks = [eval_batches(num_samples, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    positions = np.concatenate([positions for batches in ranks for positions, _ in batches])
    weights = np.concatenate([weights for batches in ranks for _, weights in batches])
    assert sorted(positions[weights == 1].tolist()) == list(range(num_samples))
    assert (positions[weights == 0] == -1).all()
    assert all(len(positions) == batch_size for batches in ranks for positions, _ in batches)


@st.composite
def histories(draw: st.DrawFn, global_batch: int, num_batches: int) -> list[tuple[int, int, int]]:
    """Starts of a run until `num_batches` are consumed: (world size, workers, batches consumed before it dies)."""
    worlds = [size for size in range(1, 65) if global_batch % size == 0]
    history = []
    while sum(consumed for _, _, consumed in history) < num_batches:
        consumed = draw(st.integers(1, num_batches))
        history.append((draw(st.sampled_from(worlds)), draw(st.integers(0, 4)), consumed))
    return history


def consume(
    make_plan: Callable[[], Plan], start: int, world_size: int, workers: int, count: int
) -> Iterator[np.ndarray]:
    """Global batches as ranks with worker processes put them together: every worker has a plan of its own."""
    plans = [[make_plan() for _ in range(max(workers, 1))] for _ in range(world_size)]
    for number in range(count):
        parts = []
        for rank, of_rank in enumerate(plans):
            plan = of_rank[number % len(of_rank)]
            slots = rank_slots(plan.global_batch, rank, world_size)
            parts.append(plan.batch(*divmod(start + number, plan.batches_per_epoch), slots))
        assert {len(part) for part in parts} == {len(parts[0])}
        yield np.concatenate(parts)


@given(makers_of_plans(), st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_ranks_workers_and_interruptions_a_run_had_its_batches_are_those_of_one_process(
    make_plan: Callable[[], Plan], data: st.DataObject
) -> None:
    alone = make_plan()
    num_batches = min(2 * alone.batches_per_epoch, 12)
    expected = [alone.batch(*divmod(step, alone.batches_per_epoch)) for step in range(num_batches)]
    found: list[np.ndarray] = []
    for world_size, workers, consumed in data.draw(histories(alone.global_batch, num_batches)):
        found.extend(consume(make_plan, len(found), world_size, workers, consumed))
    for batch, other in zip(expected, found, strict=False):
        np.testing.assert_array_equal(batch, other)


def test_a_billion_samples_cost_a_rank_little_wherever_it_starts() -> None:
    lengths, slots = np.full(100_000, 10_000), rank_slots(4096 * 64, 4095, 4096)
    tracemalloc.start()
    start = time.process_time()
    plan = Plan(lengths, global_batch=4096 * 64, seed=0)
    assert len(plan.batch(12, 3000, slots)) == 64
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2 and peak < 50 << 20
    start = time.process_time()
    for step in range(1000):
        plan.batch(12, step, slots)
    assert (time.process_time() - start) / (1000 * 64) < 2e-6  # benchmarks/planning.py measures
