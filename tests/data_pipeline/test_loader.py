"""The loader: the same batches from any workers and ranks, resumed to the sample; bad images replaced and counted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.data import AugmentConfig, ViewConfig
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.loader import EvalLoader, ShardLoader
from data_pipeline.reindex import index_shards
from tests.support.loading import LENGTHS, assert_same, configure, take
from tests.support.shards import draw_image, encode, make_shards, write_tar


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), LENGTHS)


def test_without_augmentation_each_slot_holds_the_image_and_label_of_its_sample(index: ShardIndex) -> None:
    loader = ShardLoader(
        index, configure(augment=AugmentConfig(crop="none", flip=False)), global_batch=16, seed=0
    )
    for batch in take(loader, loader.batches_per_epoch):
        assert batch.images.shape == (16, 1, 28, 28)
        for image, target, sample_id in zip(
            batch.images, batch.targets.tolist(), batch.sample_ids.tolist(), strict=True
        ):
            np.testing.assert_array_equal(image[0].numpy(), draw_image(sample_id))
            assert target == sample_id % 10


def test_colour_images_arrive_in_rgb_order(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [4], channels=3)
    data = configure(
        channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, augment=AugmentConfig(crop="none", flip=False)
    )
    batch = take(ShardLoader(index, data, global_batch=4, seed=0), 1)[0]
    for image, sample_id in zip(batch.images, batch.sample_ids.tolist(), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), draw_image(sample_id, channels=3))


def test_three_workers_give_the_same_samples_and_pixels_as_none_across_epochs(index: ShardIndex) -> None:
    alone = take(ShardLoader(index, configure(), global_batch=16, seed=5), 20)
    shared = take(ShardLoader(index, configure(workers=3, prefetch=2), global_batch=16, seed=5), 20)
    assert_same(alone, shared)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_have_the_batches_of_one_rank(index: ShardIndex, world_size: int) -> None:
    alone = take(ShardLoader(index, configure(), global_batch=16, seed=5), 12)
    ranks = [
        take(ShardLoader(index, configure(), global_batch=16, seed=5, rank=rank, world_size=world_size), 12)
        for rank in range(world_size)
    ]
    for whole, shares in zip(alone, zip(*ranks, strict=True), strict=True):
        assert torch.cat([share.sample_ids for share in shares]).tolist() == whole.sample_ids.tolist()
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)


@pytest.mark.parametrize("consumed", [0, 1, 6, 7, 8, 15])
def test_resuming_with_other_workers_equals_going_on(index: ShardIndex, consumed: int) -> None:
    uninterrupted = take(ShardLoader(index, configure(), global_batch=16, seed=5), 18)
    first = ShardLoader(index, configure(), global_batch=16, seed=5)
    take(first, consumed)
    second = ShardLoader(index, configure(workers=consumed % 2), global_batch=16, seed=5)
    second.load_state_dict(first.state_dict())
    assert_same(take(second, 18 - consumed), uninterrupted[consumed:])


def test_the_position_counts_what_was_consumed_and_not_what_was_read_ahead(index: ShardIndex) -> None:
    loader = ShardLoader(index, configure(workers=1, prefetch=8), global_batch=16, seed=5)
    batches = iter(loader)
    seen = [next(batches) for _ in range(5)]
    for _ in range(3):
        loader.advance()
    assert loader.state_dict() == {"version": 1, "epoch": 0, "samples": 48}
    assert_same([next(iter(loader))], seen[3:4])


def test_after_the_last_batch_of_an_epoch_the_position_is_the_start_of_the_next(index: ShardIndex) -> None:
    loader = ShardLoader(index, configure(), global_batch=16, seed=5)
    take(loader, loader.batches_per_epoch)
    assert loader.state_dict() == {"version": 1, "epoch": 1, "samples": 0}


def test_a_position_of_another_batch_size_is_refused(index: ShardIndex) -> None:
    loader = ShardLoader(index, configure(), global_batch=16, seed=5)
    with pytest.raises(DataError, match=r"position .*24.* is not one of this run, which has 7 batches of 16"):
        loader.load_state_dict({"version": 1, "epoch": 0, "samples": 24})


def test_more_ranks_than_the_batch_can_be_shared_by_is_an_error(index: ShardIndex) -> None:
    with pytest.raises(DataError, match="cannot be shared equally by 32 ranks"):
        ShardLoader(index, configure(), global_batch=16, seed=0, world_size=32)


def test_a_batch_larger_than_the_data_is_an_error(index: ShardIndex) -> None:
    with pytest.raises(DataError, match=r"global batch of 128 .* there are 113"):
        ShardLoader(index, configure(), global_batch=128, seed=0)


def test_hidden_labels_are_the_same_ones_always_and_about_as_many_as_asked(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [400], size=(8, 8))
    data = configure(image_size=8, label_fraction=0.25)
    batches = take(ShardLoader(index, data, global_batch=50, seed=0), 16)
    labels: dict[int, set[int]] = {}
    for batch in batches:
        for sample_id, target in zip(batch.sample_ids.tolist(), batch.targets.tolist(), strict=True):
            labels.setdefault(sample_id, set()).add(target)
    assert all(targets in ({-1}, {sample_id % 10}) for sample_id, targets in labels.items())
    labelled = {sample_id for sample_id, targets in labels.items() if targets != {-1}}
    assert 70 < len(labelled) < 130

    dropped = ShardLoader(index, data.model_copy(update={"unlabelled": "drop"}), global_batch=10, seed=0)
    assert dropped.num_samples == len(labelled)
    kept = {sample_id for batch in take(dropped, 40) for sample_id in batch.sample_ids.tolist()}
    assert kept == labelled


def test_a_larger_fraction_keeps_the_labels_of_a_smaller_one(index: ShardIndex) -> None:
    def labelled(fraction: float) -> set[int]:
        loader = ShardLoader(index, configure(label_fraction=fraction), global_batch=1, seed=0)
        batches = take(loader, loader.batches_per_epoch)
        return {int(batch.sample_ids[0]) for batch in batches if int(batch.targets[0]) >= 0}

    assert labelled(0.2) < labelled(0.6) < labelled(1.0)


BAD = {3: b"no image at all", 50: b"x", 77: b"\x89PNG\r\n\x1a\n" + b"\0" * 30}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("damaged"), LENGTHS, bad=BAD)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_counted_by_reason_and_named_once(damaged: ShardIndex, workers: int) -> None:
    loader = ShardLoader(damaged, configure(workers=workers, max_bad_fraction=0.1), global_batch=1, seed=5)
    batches = take(loader, 2 * loader.batches_per_epoch)
    assert not {3, 50, 77} & {int(batch.sample_ids[0]) for batch in batches}
    assert loader.bad_samples == {"not an image": 2, "damaged": 1}
    named = {(bad.sample_id, bad.shard, bad.key, bad.reason) for bad in loader.drain_bad()}
    assert named == {
        (3, "test-000000.tar", "000003", "not an image"),
        (50, "test-000002.tar", "000050", "not an image"),
        (77, "test-000002.tar", "000077", "damaged"),
    }
    assert loader.drain_bad() == []


def test_substitutes_are_the_same_on_any_number_of_ranks(damaged: ShardIndex) -> None:
    data = configure(max_bad_fraction=0.1)
    alone = take(ShardLoader(damaged, data, global_batch=8, seed=5), 14)
    ranks = [
        take(ShardLoader(damaged, data, global_batch=8, seed=5, rank=r, world_size=2), 14) for r in range(2)
    ]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), whole.images)


def test_where_an_epoch_is_one_batch_the_next_slots_replace_bad_images_on_any_number_of_ranks(
    damaged: ShardIndex,
) -> None:
    data = configure(max_bad_fraction=0.1)
    alone = take(ShardLoader(damaged, data, global_batch=112, seed=5), 3)
    ranks = [
        take(ShardLoader(damaged, data, global_batch=112, seed=5, rank=r, world_size=2), 3) for r in range(2)
    ]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert not set(BAD) & set(whole.sample_ids.tolist())
        assert torch.equal(torch.cat([first.sample_ids, second.sample_ids]), whole.sample_ids)
        assert torch.equal(torch.cat([first.images, second.images]), whole.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_images_stop_the_run_with_a_table(damaged: ShardIndex, workers: int) -> None:
    loader = ShardLoader(damaged, configure(workers=workers, max_bad_fraction=0.02), global_batch=1, seed=5)
    with pytest.raises(
        DataError, match=r"^3 of 113 images cannot be used \(1 damaged, 2 not an image\); .*allows 0.02"
    ):
        take(loader, 113)


def test_a_set_without_a_single_image_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [5], bad=dict.fromkeys(range(5), b"x"))
    loader = ShardLoader(index, configure(workers=1, max_bad_fraction=1.0), global_batch=5, seed=0)
    with pytest.raises(DataError, match=r"^100 images in a row cannot be used"):
        take(loader, 1)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_evaluation_sees_every_sample_once_and_whole(
    index: ShardIndex, world_size: int, workers: int
) -> None:
    seen: dict[int, Batch] = {}
    for rank in range(world_size):
        loader = EvalLoader(
            index, configure(workers=workers), batch_size=16, rank=rank, world_size=world_size
        )
        batches = list(loader)
        assert len(batches) == len(loader) == math.ceil(math.ceil(113 / world_size) / 16)
        for part in (piece for batch in batches for piece in batch.split(1)):
            if part.weights.item():
                assert seen.setdefault(int(part.sample_ids), part) is part
            else:
                assert not part.images.any()
                assert int(part.targets) == -1
    assert sorted(seen) == list(range(113))
    for sample_id, part in seen.items():
        np.testing.assert_array_equal(part.images[0, 0].numpy(), draw_image(sample_id))
        assert int(part.targets) == sample_id % 10


def test_in_evaluation_a_bad_image_has_weight_zero_and_is_counted(damaged: ShardIndex) -> None:
    loader = EvalLoader(damaged, configure(max_bad_fraction=0.1), batch_size=113)
    (batch,) = loader
    assert torch.nonzero(batch.weights == 0).flatten().tolist() == [3, 50, 77]
    assert loader.bad_samples == {"not an image": 2, "damaged": 1}


def test_images_of_another_size_are_resized_to_the_square(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [6], size=(40, 56), suffix="jpg")
    for augment in (AugmentConfig(crop="none"), AugmentConfig(crop="pad", pad=3), AugmentConfig()):
        batch = take(ShardLoader(index, configure(augment=augment), global_batch=6, seed=0), 1)[0]
        assert batch.images.shape == (6, 1, 28, 28)
        assert batch.images.float().std() > 10


@pytest.mark.parametrize("workers", [0, 1])
def test_further_views_are_other_crops_of_the_same_images(tmp_path: Path, workers: int) -> None:
    index = make_shards(tmp_path, [30, 20], size=(40, 56), suffix="jpg", channels=3)
    views = (ViewConfig(count=2, size=28, scale=(0.4, 1.0)), ViewConfig(count=3, size=12, scale=(0.05, 0.4)))
    colour = {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3, "workers": workers}
    data = configure(**colour, augment=AugmentConfig(views=views))
    batches = take(ShardLoader(index, data, global_batch=10, seed=5), 6)
    plain = take(ShardLoader(index, configure(**colour, augment=AugmentConfig()), global_batch=10, seed=5), 6)
    assert_same(batches, plain)  # the images themselves are what they would be alone
    shapes = [(10, 3, 28, 28)] * 2 + [(10, 3, 12, 12)] * 3
    for batch in batches:
        assert [tuple(view.shape) for view in batch.views] == shapes
        distinct = {view.contiguous().numpy().tobytes() for view in (batch.images, *batch.views)}
        assert len(distinct) == 6
        assert all(view.float().std() > 5 for view in batch.views)
    halves = [
        take(ShardLoader(index, data, global_batch=10, seed=5, rank=rank, world_size=2), 6)
        for rank in range(2)
    ]
    for batch, *parts in zip(batches, *halves, strict=True):
        for number, view in enumerate(batch.views):
            assert torch.equal(torch.cat([part.views[number] for part in parts]), view)
    small = batches[0].split(4)
    assert [len(part.views[4]) for part in small] == [4, 4, 2]


def test_an_image_that_is_bad_is_replaced_in_every_view(tmp_path: Path) -> None:
    index = make_shards(tmp_path, LENGTHS, bad=BAD)
    augment = AugmentConfig(views=(ViewConfig(count=1, size=28, scale=(0.9, 1.0)),))
    data = configure(augment=augment, max_bad_fraction=0.1)
    for batch in take(ShardLoader(index, data, global_batch=16, seed=5), 14):
        assert not set(BAD) & set(batch.sample_ids.tolist())
        assert all(view.float().std() > 1 for views in batch.views for view in views)


@pytest.mark.parametrize("workers", [0, 1])
def test_captions_come_with_their_images_in_training_and_evaluation(tmp_path: Path, workers: int) -> None:
    members = []
    for number in range(30):
        members += [(f"{number:03d}.png", encode(draw_image(number))), (f"{number:03d}.cls", b"1")]
        members += [(f"{number:03d}.txt", f"Bild {number} ä".encode())] if number % 3 else []
    write_tar(tmp_path / "t.tar", members)
    index, data = index_shards(str(tmp_path)), configure(captions=True, workers=workers)
    for batch in [
        *take(ShardLoader(index, data, global_batch=10, seed=5), 6),
        *EvalLoader(index, data, batch_size=16),
    ]:
        expected = ["" if n % 3 == 0 or n < 0 else f"Bild {n} ä" for n in batch.sample_ids.tolist()]
        assert list(batch.captions or ()) == expected
        assert [len(part.captions or ()) for part in batch.split(6)] == [len(part) for part in batch.split(6)]
