from __future__ import annotations

from collections import Counter
from itertools import permutations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from configs.data import ColourJitterConfig
from data_pipeline.pixels import colour
from data_pipeline.pixels.colour import COLOUR_CHANGES, draw_jitter, turn_hue
from tests.support.shards import draw_image

IMAGE = cv2.resize(draw_image(0, 12, 12, 3), (64, 64), interpolation=cv2.INTER_CUBIC)
GREY = IMAGE[:, :, 0]
EVERYTHING = ColourJitterConfig(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)


def draw_many(config: ColourJitterConfig, count: int = 4000) -> list[list[colour.Step]]:
    u = np.random.default_rng(0).random((count, colour.NUM_DRAWS))
    return [draw_jitter(config, row) for row in u]


@pytest.mark.parametrize("factor", [0.0, 0.37, 1.0, 1.6])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_pixels_equal_those_of_torchvision(name: str, factor: float) -> None:
    for pixels in (IMAGE, GREY):
        image = Image.fromarray(pixels)
        expected = getattr(reference, f"adjust_{name}")(image, factor)
        np.testing.assert_array_equal(COLOUR_CHANGES[name](image, factor), expected)


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.03, 0.1, 1 / 3, 0.5])
def test_hue_is_nearer_to_floating_point_than_torchvisions_own_on_pil_images(turns: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for pixels in (IMAGE, noise):
        exact = reference.adjust_hue(torch.from_numpy(pixels).permute(2, 0, 1), turns).permute(1, 2, 0)
        image = Image.fromarray(pixels)
        ours, theirs = (
            np.abs(np.asarray(turned).astype(int) - exact.numpy())
            for turned in (turn_hue(image, turns), reference.adjust_hue(image, turns))
        )
        # 256 hues: a step of one changes a channel by up to 6.
        assert ours.max() <= 12
        assert ours.mean() < min(1.0, theirs.mean())


def test_a_third_of_a_turn_makes_red_green() -> None:
    red = Image.new("RGB", (4, 4), (200, 0, 0))
    np.testing.assert_allclose(turn_hue(red, 1 / 3).getpixel((0, 0)), (0, 200, 0), atol=5)


def test_amounts_are_uniform_within_one_plus_minus_each_width_and_independent() -> None:
    amounts = {
        name: np.array([dict(steps)[name] for steps in draw_many(EVERYTHING)]) for name in COLOUR_CHANGES
    }
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        unit = (amounts[name] - low) / (high - low)
        assert 0 <= unit.min() < 0.003
        assert 0.997 < unit.max() <= 1
        np.testing.assert_allclose(np.quantile(unit, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)
    correlation = np.corrcoef(np.stack(list(amounts.values())))
    assert np.abs(correlation - np.eye(4)).max() < 0.08


def test_factors_do_not_fall_below_zero() -> None:
    factors = [steps[0][1] for steps in draw_many(ColourJitterConfig(contrast=2.5))]
    assert 0 <= min(factors) < 0.01
    assert 3.49 < max(factors) <= 3.5


def test_every_order_of_the_four_is_equally_likely() -> None:
    orders = Counter(tuple(name for name, _ in steps) for steps in draw_many(EVERYTHING))
    assert orders.keys() == set(permutations(COLOUR_CHANGES))
    # 4000 / 24 = 167 each, with a standard deviation of 13.
    assert min(orders.values()) > 105
    assert max(orders.values()) < 230


def test_parts_of_width_zero_are_left_out() -> None:
    names = {name for steps in draw_many(ColourJitterConfig(brightness=0.1, hue=0.1)) for name, _ in steps}
    assert names == {"brightness", "hue"}


def test_images_are_changed_with_the_probability_asked_for() -> None:
    changed = [bool(steps) for steps in draw_many(ColourJitterConfig(hue=0.1, probability=0.8))]
    assert abs(np.mean(changed) - 0.8) < 0.03
