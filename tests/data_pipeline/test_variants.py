"""data_pipeline.variants: a teacher that is asked beforehand sees the pixels that a student will see, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.data import AugmentConfig, DataConfig, RandAugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.loader import ShardLoader
from data_pipeline.mix import draw_mix
from data_pipeline.sidecar import parts_of
from data_pipeline.variants import VariantLoader
from tests.support.loading import configure, take
from tests.support.shards import make_shards

LENGTHS = [9, 6, 11]
Seen = dict[tuple[int, int, int], torch.Tensor]

AUGMENT = AugmentConfig(
    crop="random_resized", scale=(0.3, 1.0), erase=0.5, randaugment=RandAugmentConfig(probability=1.0)
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), LENGTHS, size=(40, 30), channels=3, suffix="jpg")


def recipe(**changes: object) -> DataConfig:
    colours = {
        "channels": 3,
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2,) * 3,
        "image_size": 20,
        "augment": AUGMENT,
    }
    return configure(**(colours | {"repeats": 2} | changes))


@pytest.fixture(scope="module")
def taught(index: ShardIndex) -> Seen:
    """What a teacher is shown of the first two passes."""
    parts = parts_of(index, passes=[2], copies=2)
    batches = list(VariantLoader(index, recipe(), parts, batch_size=4, seed=7))
    assert [len(batch) for batch in batches] == [4, 4, 1, 4, 2, 4, 4, 3] * 4
    return images_of(batches)


def images_of(batches: list[Batch]) -> Seen:
    seen = {}
    for batch in batches:
        keys = zip(batch.epochs.tolist(), batch.copies.tolist(), batch.sample_ids.tolist(), strict=True)
        seen.update({key: image.clone() for key, image in zip(keys, batch.images, strict=True)})
    return seen


@pytest.mark.parametrize(("world_size", "workers", "global_batch"), [(1, 0, 6), (2, 2, 8)])
def test_students_of_any_world_size_workers_and_batch_see_the_crops_that_the_teacher_saw(
    index: ShardIndex, taught: Seen, world_size: int, workers: int, global_batch: int
) -> None:
    compared = 0
    for rank in range(world_size):
        loader = ShardLoader(
            index,
            recipe(workers=workers),
            global_batch=global_batch,
            seed=7,
            rank=rank,
            world_size=world_size,
        )
        for key, image in images_of(take(loader, 3 * loader.batches_per_epoch)).items():
            if key[0] < 2:
                assert torch.equal(image, taught[key]), key
                compared += 1
    assert compared > 60


def test_worker_processes_change_nothing(index: ShardIndex, taught: Seen) -> None:
    parts = parts_of(index, passes=[2], copies=2)[5:8]
    apart = images_of(list(VariantLoader(index, recipe(workers=2), parts, batch_size=4, seed=7)))
    assert len(apart) == sum(LENGTHS[part.shard] for part in parts)
    assert all(torch.equal(image, taught[key]) for key, image in apart.items())


def test_the_crops_of_passes_and_copies_differ(taught: Seen) -> None:
    ones = [taught[of_pass, copy, 3] for of_pass in range(2) for copy in range(2)]
    assert not any(torch.equal(a, b) for i, a in enumerate(ones) for b in ones[:i])


def test_an_image_that_is_none_keeps_its_place_with_weight_zero(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [5], bad={2: b"no image"})
    parts = parts_of(index, passes=[1], copies=1)
    loader = VariantLoader(index, configure(max_bad_fraction=0.5), parts, batch_size=8, seed=0)
    (batch,) = list(loader)
    assert batch.weights.tolist() == [1, 1, 0, 1, 1]
    assert not batch.images[2].any()
    assert sum(loader.bad_samples.values()) == 1
    with pytest.raises(DataError, match="1 of 5 images cannot be used"):
        list(VariantLoader(index, configure(), parts, batch_size=8, seed=0))


def test_without_parts_there_is_nothing_to_show(index: ShardIndex) -> None:
    assert list(VariantLoader(index, recipe(workers=2), [], batch_size=4, seed=0)) == []


def test_variations_come_again_in_another_order_where_the_recipe_says_so(index: ShardIndex) -> None:
    data = recipe(repeats=1, augment=AUGMENT.model_copy(update={"passes": 2}))
    loader = ShardLoader(index, data, global_batch=13, seed=0)
    batches = take(loader, 6)
    seen = images_of(batches)
    for sample in range(sum(LENGTHS)):
        assert torch.equal(seen[0, 0, sample], seen[2, 0, sample])
        assert not torch.equal(seen[0, 0, sample], seen[1, 0, sample])
    orders = [torch.cat([batch.sample_ids for batch in batches[i : i + 2]]).tolist() for i in (0, 4)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_mixing_comes_again_with_the_variations(index: ShardIndex) -> None:
    ids = np.arange(8)
    numbers = {"size": 20, "seed": 0, "sample_ids": ids, "copies": 0 * ids}
    again = AugmentConfig(mixup=0.8, cutmix=1.0, passes=3)
    first, fourth, new = (
        draw_mix(config, epochs=0 * ids + of_pass, **numbers)
        for config, of_pass in ((again, 1), (again, 4), (AugmentConfig(mixup=0.8, cutmix=1.0), 4))
    )
    assert torch.equal(first.shares, fourth.shares) and torch.equal(first.boxes, fourth.boxes)
    assert not torch.equal(first.shares, new.shares)
