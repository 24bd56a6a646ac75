"""Corpora trained on together: whose samples come when, with which labels, and exactly so after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.data import AugmentConfig, CorpusConfig, DataConfig, Weight
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.loader import ShardLoader
from tests.support.loading import LENGTHS, configure, take
from tests.support.shards import draw_image, make_shards


def mixed(tmp_path: Path, **changes: object) -> tuple[ShardIndex, DataConfig]:
    make_shards(tmp_path / "first", LENGTHS)
    make_shards(tmp_path / "second", [12], num_classes=None)
    corpus = CorpusConfig(train=str(tmp_path / "second"), weight=Weight(2, "passes"))
    data = configure(train=str(tmp_path / "first"), mixture=(corpus,), **changes)
    return open_training(data), data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_resumes_exactly_on_other_ranks_and_counts_the_passes_of_each_corpus(
    tmp_path: Path, workers: int
) -> None:
    index, data = mixed(tmp_path, workers=workers)
    whole = ShardLoader(index, data, global_batch=16, seed=5)
    expected = take(whole, 20)
    assert whole.batches_per_epoch == (113 + 24) // 16
    assert whole.passes == pytest.approx({"first": 20 * 16 / 137, "second": 2 * 20 * 16 / 137}, rel=0.06)
    assert set(torch.cat([batch.sample_ids for batch in expected]).tolist()) == set(range(125))
    first = ShardLoader(index, data, global_batch=16, seed=5)
    take(first, 11)
    ranks = [
        ShardLoader(index, configured, global_batch=16, seed=5, rank=rank, world_size=2)
        for rank, configured in enumerate([data, data.model_copy(update={"workers": 1 - workers // 2})])
    ]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    for whole_batch, *parts in zip(expected[11:], *(take(rank, 9) for rank in ranks), strict=True):
        assert torch.cat([part.sample_ids for part in parts]).tolist() == whole_batch.sample_ids.tolist()
        assert torch.equal(torch.cat([part.images for part in parts]), whole_batch.images)


def test_images_of_an_unlabelled_corpus_have_no_target_and_their_own_pixels(tmp_path: Path) -> None:
    index, data = mixed(tmp_path, augment=AugmentConfig(crop="none", flip=False))
    for batch in take(ShardLoader(index, data, global_batch=16, seed=5), 8):
        for image, target, sample_id in zip(
            batch.images, batch.targets.tolist(), batch.sample_ids.tolist(), strict=True
        ):
            in_first = sample_id < 113
            assert target == (sample_id % 10 if in_first else -1)
            expected = draw_image(sample_id if in_first else sample_id - 113)
            np.testing.assert_array_equal(image[0].numpy(), expected)


def test_an_image_that_comes_twice_in_an_epoch_of_a_mixture_is_varied_anew(tmp_path: Path) -> None:
    make_shards(tmp_path / "first", [64])
    make_shards(tmp_path / "second", [4], num_classes=None)
    corpus = CorpusConfig(train=str(tmp_path / "second"), weight=Weight(8, "passes"))
    data = configure(
        train=str(tmp_path / "first"), mixture=(corpus,), augment=AugmentConfig(crop="random_resized")
    )
    loader = ShardLoader(open_training(data), data, global_batch=8, seed=0)
    seen = [
        image.numpy().tobytes()
        for batch in take(loader, loader.batches_per_epoch)
        for image, sample_id in zip(batch.images, batch.sample_ids.tolist(), strict=True)
        if sample_id == 65
    ]
    assert len(seen) >= 7
    assert len(set(seen)) == len(seen)


def test_corpora_with_other_classes_cannot_be_mixed(tmp_path: Path) -> None:
    make_shards(tmp_path / "first", [20])
    make_shards(tmp_path / "second", [20], num_classes=7)
    corpus = CorpusConfig(train=str(tmp_path / "second"), weight=Weight(10, "%"))
    with pytest.raises(
        DataError, match=r"data.mixture\[0\]: the class map of .*second' \(7 classes\) is not that"
    ):
        open_training(configure(train=str(tmp_path / "first"), mixture=(corpus,)))


@pytest.mark.parametrize(
    ("folders", "names"),
    [(("a", "b"), {"a/same", "b/same"}), (("x/a", "y/a"), {"0/same", "1/same"})],
)
def test_corpora_of_one_name_are_told_apart(
    tmp_path: Path, folders: tuple[str, str], names: set[str]
) -> None:
    for folder in folders:
        make_shards(tmp_path / folder, LENGTHS)
        info = tmp_path / folder / "_info.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "name": "same"}))
    first, second = (str(tmp_path / folder) for folder in folders)
    data = configure(train=first, mixture=(CorpusConfig(train=second, weight=Weight(1, "passes")),))
    index = open_training(data)
    assert set(ShardLoader(index, data, global_batch=16, seed=5).passes) == names
    assert len({shard.name for shard in index.shards}) == 2 * len(LENGTHS)
