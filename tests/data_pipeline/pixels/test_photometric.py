from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from configs.data import AugmentConfig, ColourJitterConfig, DataConfig, RandAugmentConfig
from data_pipeline.index import ShardIndex
from data_pipeline.loader import ShardLoader
from data_pipeline.pixels import photometric
from data_pipeline.pixels.augment import draw_variations, uniforms
from data_pipeline.pixels.photometric import Photometric
from data_pipeline.pixels.randaugment import changes
from tests.support.shards import draw_image, make_shards

BOTH = AugmentConfig(
    randaugment=RandAugmentConfig(probability=1),
    colour_jitter=ColourJitterConfig(brightness=0.4, contrast=0.4),
)


def draws(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, photometric.NUM_DRAWS))


@pytest.mark.parametrize("channels", [1, 3])
def test_steps_are_applied_one_after_the_other_in_place(channels: int) -> None:
    fill = (124, 116, 104)[:channels]
    images = np.stack([draw_image(i, 32, 32, channels).reshape(32, 32, channels) for i in range(60)])
    before, changer = images.copy(), Photometric(BOTH, fill=fill)
    for image, u in zip(images, draws(60), strict=True):
        changer.apply(image, u)
    for image, old, u in zip(images, before, draws(60), strict=True):
        expected = Image.fromarray(old.squeeze())
        for name, amount in changer.steps(u):
            expected = changes(fill)[name](expected, amount)
        np.testing.assert_array_equal(image.squeeze(), expected)


def test_randaugment_comes_before_colour_jitter() -> None:
    for u in draws(20):
        names = [name for name, _ in Photometric(BOTH, fill=(0, 0, 0)).steps(u)]
        assert len(names) == 4
        assert sorted(names[2:]) == ["brightness", "contrast"]


def test_switching_one_on_leaves_the_steps_of_the_other_as_they_were() -> None:
    together = Photometric(BOTH, fill=(0, 0, 0))
    alone = [
        Photometric(AugmentConfig(**{name: getattr(BOTH, name)}), fill=(0, 0, 0))
        for name in ("randaugment", "colour_jitter")
    ]
    for u in draws(50):
        assert together.steps(u) == alone[0].steps(u) + alone[1].steps(u)


def test_without_either_or_without_numbers_nothing_is_done() -> None:
    image = draw_image(0, 16, 16, 3)
    before = image.copy()
    Photometric(AugmentConfig(), fill=(0, 0, 0)).apply(image, draws(1)[0])
    Photometric(BOTH, fill=(0, 0, 0)).apply(image, np.empty(0))
    np.testing.assert_array_equal(image, before)


def test_steps_depend_on_the_numbers_alone_and_not_on_earlier_images() -> None:
    image, u = draw_image(0, 16, 16, 3), draws(10)
    changer, first = Photometric(BOTH, fill=(9, 9, 9)), image.copy()
    changer.apply(first, u[4])
    for other in u:
        changer.apply(image.copy(), other)
    changer.apply(image, u[4])
    np.testing.assert_array_equal(first, image)


@pytest.mark.parametrize(
    ("jitter", "message"),
    [
        ({"hue": 0.1}, "'augment.colour_jitter' changes hue, which grey images do not have"),
        ({"saturation": 0.1, "hue": 0.1}, "changes saturation and hue, which grey images do not have"),
    ],
)
def test_colours_of_grey_images_are_refused(jitter: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        grey(AugmentConfig(colour_jitter=ColourJitterConfig(**jitter)))


def test_a_colour_jitter_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="set 'brightness', 'contrast', 'saturation' or 'hue' above 0"):
        AugmentConfig(colour_jitter=ColourJitterConfig(probability=0.5))


def grey(augment: AugmentConfig) -> DataConfig:
    return DataConfig(
        train="anywhere", image_size=28, channels=1, mean=(0.5,), std=(0.5,), workers=0, augment=augment
    )


EVERYTHING = AugmentConfig(
    crop="pad",
    pad=2,
    randaugment=RandAugmentConfig(),
    colour_jitter=ColourJitterConfig(contrast=0.4, probability=0.5),
    erase=0.5,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), [30, 34])


def test_a_loader_shifts_then_mirrors_then_changes_then_erases(index: ShardIndex) -> None:
    data, mean_colour = grey(EVERYTHING), (128,)
    loader, changer = (
        ShardLoader(index, data, global_batch=32, seed=5),
        Photometric(EVERYTHING, fill=mean_colour),
    )
    batch = next(iter(loader))
    ids, side = batch.sample_ids.numpy(), np.full(32, 28)
    varied = draw_variations(EVERYTHING, 28, side, side, uniforms(5, 0, ids))
    for i, sample_id in enumerate(ids.tolist()):
        right, down = varied.shifts[i]
        padded = np.pad(draw_image(sample_id), 2)[2 - down : 30 - down, 2 - right : 30 - right, None]
        expected = padded[:, :: -1 if varied.flips[i] else 1].copy()
        changer.apply(expected, varied.photometric[i])
        left, top, width, height = varied.erasures[i]
        expected[top : top + height, left : left + width] = mean_colour
        np.testing.assert_array_equal(batch.images[i, 0], expected[:, :, 0])


def test_workers_and_ranks_give_the_same_changes_as_one_process(index: ShardIndex) -> None:
    def images(**where: int) -> torch.Tensor:
        workers = where.pop("workers", 0)
        data = grey(EVERYTHING).model_copy(update={"workers": workers})
        batches = itertools.islice(ShardLoader(index, data, global_batch=32, seed=5, **where), 4)
        return torch.stack([batch.images for batch in batches])

    alone = images()
    assert torch.equal(images(workers=2), alone)
    assert torch.equal(torch.cat([images(rank=rank, world_size=2) for rank in (0, 1)], dim=1), alone)
    assert not torch.equal(alone[:2], alone[2:])  # the second epoch differs
