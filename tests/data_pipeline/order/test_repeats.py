"""Repeated augmentation in the order of a run: every copy of every sample once per pass, whoever asks and when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data import CorpusConfig, DataConfig, Weight
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.order.plan import rank_slots
from data_pipeline.order.reading import measure_reading
from data_pipeline.order.run_order import RunOrder, Share
from tests.support.shards import make_shards

LENGTHS = [6, 5, 7, 6] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    make_shards(folder / "first", LENGTHS, size=(8, 8))
    make_shards(folder / "second", [9, 8], size=(8, 8))
    return folder


@st.composite
def orders(draw: st.DrawFn) -> dict[str, object]:
    streams = draw(st.sampled_from([None, 1, 2, 3, 4]))
    batch = draw(st.integers(1, 10)) * (streams or 1)
    return {
        "repeats": draw(st.integers(1, 5)),
        "streams": streams,
        "global_batch": batch,
        "seed": draw(st.integers(0, 2**40)),
        "window": draw(st.integers(1, 3)),
        "mixture": draw(st.booleans()),
    }


def make(folder: Path, options: dict[str, object]) -> RunOrder:
    corpus = CorpusConfig(train=str(folder / "second"), weight=Weight(1, "passes"))
    data = DataConfig(
        train=str(folder / "first"),
        mixture=(corpus,) if options["mixture"] else (),
        repeats=int(str(options["repeats"])),
        streams=options["streams"],  # type: ignore[arg-type]
        shuffle_window=int(str(options["window"])),
    )
    index: ShardIndex = open_training(data)
    return RunOrder(
        index, data, global_batch=int(str(options["global_batch"])), seed=int(str(options["seed"]))
    )


def tuples(share: Share) -> list[tuple[int, int, int]]:
    """(sample, pass, copy) of each slot."""
    return list(zip(share.sample_ids.tolist(), share.passes.tolist(), share.copies.tolist(), strict=True))


@given(options=orders())
@settings(max_examples=40, deadline=None)
def test_a_sample_comes_in_all_its_copies_in_each_pass_and_never_twice_in_one(
    folder: Path, options: dict[str, object]
) -> None:
    order = make(folder, options)
    repeats = int(str(options["repeats"]))
    seen = [
        slot
        for step in range((2 * repeats + 1) * order.batches_per_epoch)
        for slot in tuples(order.share(step))
    ]
    assert len(set(seen)) == len(seen)
    copies = Counter((sample, epoch) for sample, epoch, _ in seen)
    assert {copy for *_, copy in seen} == set(range(repeats))
    # What has not come in all its copies is what the last batch stopped at: three samples of each stream.
    unfinished = {key for key, count in copies.items() if count < repeats}
    assert len(unfinished) <= 3 * order.num_streams
    last = seen[-order.global_batch * (3 * repeats) :]
    assert unfinished <= {(sample, epoch) for sample, epoch, _ in last}


@given(options=orders(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_rank_at_any_step_has_its_part_of_what_one_process_reads_in_a_row(
    folder: Path, options: dict[str, object], data: st.DataObject
) -> None:
    alone, batch = make(folder, options), int(str(options["global_batch"]))
    step = data.draw(st.integers(0, 3 * alone.batches_per_epoch))
    expected = [tuples(alone.share(earlier)) for earlier in range(step + 1)][-1]
    world_size = data.draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
    found = []
    for rank in range(world_size):  # each begins here
        found += tuples(make(folder, options).share(step, rank_slots(batch, rank, world_size)))
    assert found == expected


@given(options=orders())
@settings(max_examples=60, deadline=None)
def test_neighbours_that_may_be_mixed_are_never_copies_of_one_sample(
    folder: Path, options: dict[str, object]
) -> None:
    order, batch = make(folder, options), int(str(options["global_batch"]))
    for step in range(2 * order.batches_per_epoch):
        slots = tuples(order.share(step))[: batch // 2 * 2]
        assert all(first[:2] != second[:2] for first, second in zip(slots[::2], slots[1::2], strict=True))


def test_an_epoch_has_as_many_images_as_ever_and_a_pass_takes_as_many_epochs_as_there_are_copies(
    folder: Path,
) -> None:
    options = {"streams": 2, "global_batch": 36, "seed": 3, "window": 2, "mixture": False}
    once, thrice = (make(folder, {**options, "repeats": repeats}) for repeats in (1, 3))
    assert once.batches_per_epoch == thrice.batches_per_epoch == 96 // 36
    shares = [thrice.share(step) for step in range(8)]
    assert {len(set(share.sample_ids.tolist())) for share in shares} == {36 // 3}
    assert sorted(np.concatenate([share.sample_ids for share in shares]).tolist()) == sorted([*range(96)] * 3)
    assert thrice.passes_done(8) == {"first": 1.0}
    assert set(thrice.share(8).passes.tolist()) == {1}


def test_a_batch_that_copies_do_not_divide_is_filled_all_the_same(folder: Path) -> None:
    order = make(
        folder, {"streams": 1, "global_batch": 16, "seed": 3, "window": 2, "mixture": False, "repeats": 3}
    )
    slots = [tuples(order.share(step)) for step in range(6)]
    assert {len(of_step) for of_step in slots} == {16}
    a, b, c, d, e, f = ([sample for sample, *_ in slots[0]][place] for place in (0, 1, 2, 9, 10, 11))
    assert len({a, b, c, d, e, f}) == 6
    assert [sample for sample, *_ in slots[0]] == [a, b, c] * 3 + [d, e, f] * 2 + [d]
    assert [sample for sample, *_ in slots[1]][:2] == [e, f]


def test_a_rank_with_whole_streams_reads_only_their_shards(folder: Path) -> None:
    data = DataConfig(train=str(folder / "first"), repeats=3, streams=4, shuffle_window=1)
    index = open_training(data)
    order = RunOrder(index, data, global_batch=48, seed=3)
    assert measure_reading(index, order, global_batch=48, num_nodes=4).most_shards <= 16 // 4 + 2
    slots = rank_slots(48, 1, 4)
    read = np.concatenate([order.share(step, slots).sample_ids for step in range(6)])  # one pass
    assert set(index.locate(read)[0].tolist()) <= set(order.shards(0, slots).tolist())


def test_copies_of_too_few_samples_are_an_error_of_the_batch(folder: Path) -> None:
    with pytest.raises(
        DataError, match="global batch of 100 images needs at least as many samples, and there are 96"
    ):
        make(
            folder,
            {"streams": 1, "global_batch": 100, "seed": 0, "window": 1, "mixture": False, "repeats": 3},
        )


def test_the_order_of_copies_is_this_one_for_ever(folder: Path) -> None:
    # Written down once: a run resumed by a later version must go on in the order it began.
    order = make(
        folder, {"streams": 2, "global_batch": 8, "seed": 7, "window": 1, "mixture": False, "repeats": 2}
    )
    assert order.share(0).sample_ids.tolist() == [12, 53, 52, 12, 19, 77, 75, 19]
    assert order.share(0).copies.tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert order.share(12).sample_ids.tolist() == [47, 45, 42, 47, 71, 70, 6, 71]


@given(options=orders(), num_epochs=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_passes_begun_are_those_that_so_many_epochs_read_from(
    folder: Path, options: dict[str, object], num_epochs: int
) -> None:
    order = make(folder, options)
    seen = [
        slot for step in range(num_epochs * order.batches_per_epoch) for slot in tuples(order.share(step))
    ]
    corpora = [lambda sample: sample < sum(LENGTHS), lambda sample: sample >= sum(LENGTHS)]
    most = [max((of_pass + 1 for sample, of_pass, _ in seen if mine(sample)), default=0) for mine in corpora]
    assert list(order.passes_begun(num_epochs)) == most[: 2 if options["mixture"] else 1]
