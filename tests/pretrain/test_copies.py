"""Repeated augmentation: copies of an image in a batch are cropped, masked and mixed each in its own way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest
from torch import Tensor

from configs.data import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.index import ShardIndex
from data_pipeline.loader import ShardLoader
from pretrain.masked import MaskedAutoencoding, SimpleMasking
from tests.support.loading import configure, take
from tests.support.masked import MEAN, SIZE, STD, tiny_task
from tests.support.shards import make_shards

REPEATS, GLOBAL_BATCH, NUM_BATCHES = 3, 18, 8


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("photos"), [30, 24], size=(40, 56), suffix="jpg", channels=3)


def batches(index: ShardIndex, *, rank: int = 0, world_size: int = 1, **augment: object) -> list[Batch]:
    data = configure(
        image_size=SIZE,
        channels=3,
        mean=MEAN,
        std=STD,
        repeats=REPEATS,
        augment=AugmentConfig.model_validate({"crop": "random_resized", "flip": False, **augment}),
    )
    loader = ShardLoader(index, data, global_batch=GLOBAL_BATCH, seed=5, rank=rank, world_size=world_size)
    return take(loader, NUM_BATCHES)


def by_sample(found: Iterable[Batch], drawn: Iterable[Tensor], *, every: int = 1) -> list[list[bytes]]:
    """What was drawn for the images of batches, [B, ...] each: a list for each sample and pass, in all its copies."""
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for batch, values in zip(found, drawn, strict=True):
        keys = zip(batch.sample_ids.tolist(), batch.epochs.tolist(), strict=True)
        for slot, key in enumerate(keys):
            if slot % every == 0:
                groups[key].append(values[slot].contiguous().numpy().tobytes())
    return list(groups.values())


def assert_each_its_own(groups: list[list[bytes]]) -> None:
    assert sum(len(group) == REPEATS for group in groups) >= GLOBAL_BATCH
    for group in groups:
        assert len(set(group)) == len(group) <= REPEATS


def test_copies_of_an_image_are_different_crops_whichever_rank_has_them(index: ShardIndex) -> None:
    whole = batches(index)
    assert_each_its_own(by_sample(whole, [batch.images for batch in whole]))
    ranks = [batches(index, rank=rank, world_size=3) for rank in range(3)]
    shares = [batch for rank in ranks for batch in rank]
    assert_each_its_own(by_sample(shares, [batch.images for batch in shares]))
    # Most samples have copies on more than one rank.
    assert (
        max(
            len({*batch.sample_ids.tolist()} & {*other.sample_ids.tolist()})
            for batch, other in zip(*ranks[:2], strict=True)
        )
        >= 3
    )


def test_copies_of_an_image_hide_different_patches(index: ShardIndex) -> None:
    whole = batches(index)
    _, autoencoding = tiny_task("mae")
    assert isinstance(autoencoding, MaskedAutoencoding)
    visible = [autoencoding.split(batch)[0].sort(dim=1).values for batch in whole]
    assert_each_its_own(by_sample(whole, visible))
    _, masking = tiny_task("simmim_swin")
    assert isinstance(masking, SimpleMasking)
    assert_each_its_own(by_sample(whole, [masking.mask(batch) for batch in whole]))


def test_copies_of_an_image_are_mixed_with_others_in_different_shares(index: ShardIndex) -> None:
    whole = batches(index, mixup=0.8)
    shares = [batch.mix.shares for batch in whole if batch.mix is not None]
    groups = by_sample(whole, shares, every=2)  # what a pair is mixed by is drawn for its first
    assert sum(len(group) > 1 for group in groups) >= GLOBAL_BATCH
    assert all(len(set(group)) == len(group) for group in groups)
    pairs = [
        (first, second)
        for batch in whole
        for first, second in zip(batch.sample_ids[::2].tolist(), batch.sample_ids[1::2].tolist(), strict=True)
    ]
    assert all(first != second for first, second in pairs)
