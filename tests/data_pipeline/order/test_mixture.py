from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data import Weight
from data_pipeline.errors import DataError
from data_pipeline.order.mixture import Corpus, Mixture, samples_per_epoch
from data_pipeline.order.plan import rank_slots

FIRST = Weight(1, "passes")


def corpus(lengths: list[int], weight: Weight = FIRST, name: str = "corpus") -> Corpus:
    return Corpus(name=name, lengths=np.array(lengths, np.int64), weight=weight)


@st.composite
def makers(draw: st.DrawFn) -> Callable[[], Mixture]:
    num_streams = draw(st.sampled_from([1, 2, 3, 4]))
    lengths = st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(lambda each: sum(each) >= 4)
    corpora = [corpus(draw(lengths))]
    for _ in range(draw(st.integers(1, 2))):
        weight = draw(
            st.one_of(
                st.builds(Weight, st.sampled_from([0.5, 1.0, 3.5]), st.just("passes")),
                st.builds(Weight, st.floats(20, 30), st.just("%")),
            )
        )
        corpora.append(corpus(draw(lengths), weight))
    most = sum(samples_per_epoch(corpora)) // num_streams
    global_batch = num_streams * draw(st.integers(1, max(1, min(most, 12))))
    options = {"seed": draw(st.integers(0, 2**63)), "window": draw(st.integers(1, 3))}
    return lambda: Mixture(corpora, global_batch=global_batch, num_streams=num_streams, **options)


def order_and_passes(mixture: Mixture, num_batches: int) -> tuple[np.ndarray, np.ndarray]:
    shares = [mixture.share(*divmod(step, mixture.batches_per_epoch)) for step in range(num_batches)]
    return np.concatenate([ids for ids, _ in shares]), np.concatenate([passes for _, passes in shares])


@given(makers())
@settings(max_examples=20, deadline=None)
def test_in_each_pass_a_corpus_has_every_sample_at_most_once_and_leaves_out_less_than_one_per_stream(
    make: Callable[[], Mixture],
) -> None:
    mixture = make()
    order, passes = order_and_passes(mixture, 3 * mixture.batches_per_epoch)
    firsts, streams = mixture._firsts, mixture.num_streams
    for first, stop in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        mine = (order >= first) & (order < stop)
        last = int(passes[mine].max()) if mine.any() else 0
        for number in range(last + 1):
            seen = order[mine & (passes == number)]
            assert len(np.unique(seen)) == len(seen)
        # Streams are one sample apart at most, so that all but the last two passes are whole.
        for number in range(last - 1):
            assert (mine & (passes == number)).sum() == (stop - first) // streams * streams


@given(makers(), st.data())
@settings(max_examples=20, deadline=None)
def test_seeking_equals_iterating_and_ranks_together_have_the_batch(
    make: Callable[[], Mixture], data: st.DataObject
) -> None:
    iterating, seeking = make(), make()
    flat = data.draw(st.integers(0, 3 * seeking.batches_per_epoch - 1))
    order, passes = order_and_passes(iterating, flat + 1)
    where = divmod(flat, seeking.batches_per_epoch)
    batch = seeking.global_batch
    ids, seen = seeking.share(*where)
    np.testing.assert_array_equal(ids, order[-batch:])
    np.testing.assert_array_equal(seen, passes[-batch:])
    world_size = data.draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
    parts = [make().batch(*where, rank_slots(batch, rank, world_size)) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), ids)


@pytest.mark.parametrize("share", [0.4, 10, 33.3, 60, 97])
def test_of_two_corpora_each_batch_has_the_share_to_within_one_image(share: float) -> None:
    mixture = Mixture(
        [corpus([4000] * 8), corpus([500] * 8, Weight(share, "%"))], global_batch=64, seed=1, window=1
    )
    assert mixture.num_streams == 8
    for step in range(300):
        count = int((mixture.batch(0, step) >= 32_000).sum())
        assert abs(count - 64 * share / 100) < 1.01


def test_of_many_corpora_every_stream_keeps_every_share_to_within_two_images_over_any_time() -> None:
    weights = [FIRST, Weight(20, "%"), Weight(7, "%"), Weight(0.5, "passes")]
    corpora = [corpus([1000] * 16, weight) for weight in weights]
    mixture = Mixture(corpora, global_batch=96, seed=1)
    amounts = np.array(samples_per_epoch(corpora))
    order = [mixture.batch(*divmod(step, mixture.batches_per_epoch)) for step in range(900)]
    owners = np.stack(order).reshape(900, mixture.num_streams, -1) // 16_000
    for number, amount in enumerate(amounts):
        counts = (owners == number).sum(axis=2).cumsum(axis=0)
        expected = np.arange(1, 901)[:, None] * (96 / mixture.num_streams) * amount / amounts.sum()
        assert np.abs(counts - expected).max() < 2


def test_passes_are_counted_per_corpus_and_an_epoch_is_one_of_the_first() -> None:
    mixture = Mixture(
        [corpus([600, 400]), corpus([50, 50], Weight(3, "passes"))], global_batch=10, seed=0, num_streams=2
    )
    assert mixture.batches_per_epoch == 130
    assert mixture.passes_done(0) == (0, 0)
    assert mixture.passes_done(130) == pytest.approx((1, 3), abs=0.03)
    assert mixture.passes_done(1300) == pytest.approx((10, 30), abs=0.03)
    assert set(mixture.share(8, 100)[1].tolist()) == {8, 26}


def test_a_rank_with_whole_streams_reads_only_its_share_of_the_shards_of_every_corpus() -> None:
    mixture = Mixture(
        [corpus([100] * 32), corpus([100] * 16, Weight(1, "passes"))], global_batch=64, seed=0, num_streams=8
    )
    slots = rank_slots(64, 3, 8)
    steps = range(mixture.batches_per_epoch)
    shards = np.unique(np.concatenate([mixture.batch(0, step, slots) for step in steps]) // 100)
    assert (shards < 32).sum() <= 32 // 8 + 2
    assert (shards >= 32).sum() <= 2 * (16 // 8 + 2)  # parts of two passes


def test_the_order_of_a_mixture_is_this_one_for_ever() -> None:
    # Written down once: a run resumed by a later version must go on in the order it began.
    mixture = Mixture(
        [corpus([5, 3]), corpus([4], Weight(50, "%"))], global_batch=4, seed=7, window=2, num_streams=2
    )
    expected = [[9, 7, 2, 11], [8, 6, 4, 10], [11, 5, 1, 9], [10, 0, 3, 8]]
    assert [mixture.batch(0, step).tolist() for step in range(4)] == expected


@pytest.mark.parametrize(
    ("corpora", "global_batch", "message"),
    [
        (
            [corpus([5]), corpus([5], FIRST)],
            12,
            r"global batch of 12 .* an epoch of the mixture has 10; lower",
        ),
        ([corpus([50]), corpus([2], FIRST, "few")], 12, r"'few' has 2 samples .* fewer than the 4 streams"),
        (
            [corpus([50]), corpus([9], Weight(0.5, "%"), "rare")],
            12,
            r"'rare' with weight 0.5 % has not one image",
        ),
    ],
)
def test_mixtures_that_cannot_be_say_why(corpora: list[Corpus], global_batch: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(corpora, global_batch=global_batch, seed=0, num_streams=4)
