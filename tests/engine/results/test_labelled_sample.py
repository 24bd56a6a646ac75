"""A fixed choice of labelled images, read like any index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.base import ConfigError
from configs.data import DataConfig
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.loader import EvalLoader
from data_pipeline.order.selection import label_is_usable
from engine.results.labelled_sample import LabelledSample

DATA = DataConfig(train="", image_size=28, channels=1, mean=(0.286,), std=(0.353,), workers=0)


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    return open_index("mirada://sample/train")


@pytest.mark.parametrize("size", [1, 100, 5999, 6000, 6001])
def test_it_holds_as_many_images_as_asked_for_or_all(index: ShardIndex, size: int) -> None:
    sample = LabelledSample(index, DATA, size=size)
    assert sample.num_samples == min(size, 6000) == len(sample.labels())
    assert sample.classes == index.classes


def test_a_smaller_choice_is_part_of_a_larger_one_and_both_are_fixed(index: ShardIndex) -> None:
    small, again, large = (LabelledSample(index, DATA, size=size) for size in (50, 50, 500))
    assert np.array_equal(places(small), places(again))
    assert set(map(tuple, places(small))) < set(map(tuple, places(large)))


def test_every_class_is_chosen_about_as_often_as_it_occurs(index: ShardIndex) -> None:
    counts = np.bincount(LabelledSample(index, DATA, size=1000).labels(), minlength=10)
    assert counts.min() > 60 and counts.max() < 140


def test_only_labels_that_may_be_used_are(index: ShardIndex) -> None:
    data = DATA.model_copy(update={"label_fraction": 0.1})
    sample = LabelledSample(index, data, size=10_000)
    assert sample.num_samples == label_is_usable(data, np.arange(6000)).sum()


def test_without_any_label_that_may_be_used_it_is_an_error(index: ShardIndex) -> None:
    with pytest.raises(ConfigError, match=r"features cannot be probed on data\.val"):
        LabelledSample(index, DATA.model_copy(update={"label_fraction": 1e-9}), size=10)


def test_images_and_labels_are_those_of_the_whole_index(index: ShardIndex) -> None:
    sample = LabelledSample(index, DATA, size=40)
    every = next(iter(EvalLoader(index, DATA, batch_size=6000)))
    first = next(iter(EvalLoader(sample, DATA, batch_size=64)))
    shards = [np.flatnonzero(np.isin(index.rows(s)["offset"], sample.rows(s)["offset"])) for s in range(6)]
    ids = torch.from_numpy(np.concatenate([index.starts[s] + rows for s, rows in enumerate(shards)]))
    assert torch.equal(first.images[:40], every.images[ids])
    assert torch.equal(first.targets[:40], every.targets[ids])
    assert first.weights.tolist() == [1.0] * 40 + [0.0] * 24


def places(index: ShardIndex) -> np.ndarray:
    return np.concatenate(
        [
            np.stack([np.full(len(rows), s), rows["offset"]], 1)
            for s, rows in enumerate(map(index.rows, range(6)))
        ]
    )
