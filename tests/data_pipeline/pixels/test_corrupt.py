"""data_pipeline.pixels.corruptions: pure, graded, for grey and colour squares of any size."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.pixels.corruptions.corrupt import FAMILIES, NAMES, chosen_corruptions, corrupt
from tests.support.photographs import photographs

UNIFORM = 128
CHANCELESS = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg"}


def squares(side: int, channels: int) -> list[NDArray[np.uint8]]:
    images = [image.convert("RGB" if channels == 3 else "L") for image in photographs((side, side))]
    return [np.asarray(image).reshape(side, side, channels) for image in images]


def distance(name: str, severity: int, images: list[NDArray[np.uint8]]) -> float:
    images = images * 8  # chance differs from one to the next
    changed = [corrupt(image, name, severity, seed=0, sample_id=i) for i, image in enumerate(images)]
    return float(np.mean([np.abs(a.astype(float) - b) for a, b in zip(changed, images, strict=True)]))


def detail(image: NDArray[np.uint8]) -> float:
    return float(np.abs(np.diff(image.astype(int), axis=1)).mean())


def test_there_are_the_fifteen_of_imagenet_c_in_four_families() -> None:
    assert {family: len(members) for family, members in FAMILIES.items()} == {
        "noise": 3, "blur": 4, "weather": 4, "digital": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (64, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_severities_move_an_image_further_and_further(name: str, side: int, channels: int) -> None:
    images = squares(side, channels)
    distances = [distance(name, severity, images) for severity in (1, 2, 3, 4, 5)]
    # A distance of pixels is no exact measure: half of the pixels, on their grid, lie nearer than six tenths.
    assert all(later > 0.8 * former for former, later in pairwise(distances))
    assert distances[0] > 0.2 and distances[4] == max(distances) > 1.15 * distances[0]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_depend_on_seed_sample_and_severity_and_on_nothing_else(name: str) -> None:
    image = squares(28, 1)[0]
    before = image.copy()
    first = corrupt(image, name, 3, seed=1, sample_id=7)
    corrupt(image, "gaussian_noise", 5, seed=9, sample_id=9)
    np.random.default_rng(0).random()
    assert np.array_equal(first, corrupt(image, name, 3, seed=1, sample_id=7))
    assert np.array_equal(image, before) and first.shape == image.shape and first.dtype == np.uint8
    others = [corrupt(image, name, 3, seed=seed, sample_id=sample) for seed, sample in ((2, 7), (1, 8))]
    assert [np.array_equal(first, other) for other in others] == [name in CHANCELESS] * 2


def test_noise_has_the_strength_it_says() -> None:
    grey = np.full((224, 224, 3), UNIFORM, np.uint8)
    spread = [corrupt(grey, "gaussian_noise", s, seed=0, sample_id=0).std() / 255 for s in (1, 2)]
    assert spread == pytest.approx([0.08, 0.12], rel=0.02)
    photons = (UNIFORM / 255) / (corrupt(grey, "shot_noise", 1, seed=0, sample_id=0) / 255).var()
    assert photons == pytest.approx(60, rel=0.05)
    salted = corrupt(grey, "impulse_noise", 4, seed=0, sample_id=0)
    assert (salted == 0).mean() == pytest.approx(0.085, rel=0.05)
    assert (salted == 255).mean() == pytest.approx(0.085, rel=0.05)
    small = np.full((56, 56, 1), UNIFORM, np.uint8)  # a quarter of the side: half of the noise
    halved = [corrupt(small, "gaussian_noise", 1, seed=0, sample_id=i).std() / 255 for i in range(20)]
    assert np.mean(halved) == pytest.approx(0.04, rel=0.02)


@pytest.mark.parametrize("name", FAMILIES["blur"])
def test_blur_leaves_plain_areas_alone_and_takes_detail_from_others(name: str) -> None:
    plain = np.full((32, 32, 3), UNIFORM, np.uint8)
    assert np.abs(corrupt(plain, name, 5, seed=0, sample_id=0).astype(int) - UNIFORM).max() <= 1
    for image in squares(64, 3):
        blurred = corrupt(image, name, 5, seed=0, sample_id=0)
        assert blurred.mean() == pytest.approx(image.mean(), abs=6)
        if name != "glass_blur":  # which moves detail
            assert (
                np.abs(np.diff(blurred.astype(int), axis=1)).mean()
                < 0.8 * np.abs(np.diff(image.astype(int), axis=1)).mean()
            )


def test_light_and_contrast_are_those_of_opencv_and_of_the_definition() -> None:
    image = squares(64, 3)[1]
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.minimum(hsv[..., 2] + 0.3, 1)
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    assert np.abs(corrupt(image, "brightness", 3, seed=0, sample_id=0) - expected).max() <= 1
    flat = corrupt(image, "contrast", 3, seed=0, sample_id=0)
    assert flat.std(axis=(0, 1)) == pytest.approx(0.2 * image.std(axis=(0, 1)), rel=0.03)
    assert flat.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)), abs=0.6)


def test_families_and_names_can_be_chosen_together() -> None:
    assert chosen_corruptions("all") == NAMES
    assert chosen_corruptions("fog, noise,fog") == ("gaussian_noise", "shot_noise", "impulse_noise", "fog")
    with pytest.raises(
        DataError, match=r"no corruption 'wether'; did you mean 'weather'\? allowed are 'all'"
    ):
        chosen_corruptions("fog,wether")
    with pytest.raises(DataError, match="no corruption ''; allowed are"):
        chosen_corruptions("")
    with pytest.raises(ValueError, match="severity 6 is not one of 1 to 5"):
        corrupt(np.zeros((8, 8, 1), np.uint8), "fog", 6, seed=0, sample_id=0)
