from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data import AugmentConfig, ColourJitterConfig, RandAugmentConfig
from data_pipeline.pixels import photometric
from data_pipeline.pixels.augment import crop_boxes, draw_variations, uniforms

MANY = np.arange(20_000)


def sides(value: int) -> np.ndarray:
    return np.full(len(MANY), value)


def test_numbers_depend_on_seed_epoch_and_sample_and_not_on_their_company() -> None:
    together = uniforms(1, 2, np.array([10, 11, 12]))
    np.testing.assert_array_equal(uniforms(1, 2, np.array([12]))[0], together[2])
    for other in (
        uniforms(2, 2, np.array([12])),
        uniforms(1, 3, np.array([12])),
        uniforms(1, 2, np.array([13])),
    ):
        assert (other[0] != together[2]).all()


def test_numbers_are_uniform_and_columns_are_independent() -> None:
    u = uniforms(0, 0, MANY)
    assert u.min() >= 0
    assert u.max() < 1
    # Mean 1/2 with standard error 0.002; correlations of 20,000 pairs stay within five times 0.007.
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.011)
    correlation = np.corrcoef(u.T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.036


@settings(deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), low=st.floats(0.01, 1.0))
def test_crops_lie_within_the_image_whatever_its_shape(height: int, width: int, low: float) -> None:
    config = AugmentConfig(scale=(low, 1.0))
    boxes = crop_boxes(config, np.full(50, height), np.full(50, width), uniforms(0, 0, np.arange(50)))
    lefts, tops, widths, heights = boxes.T
    assert (lefts >= 0).all()
    assert (tops >= 0).all()
    assert (widths >= 1).all()
    assert (heights >= 1).all()
    assert (lefts + widths <= width).all()
    assert (tops + heights <= height).all()


def test_random_resized_crops_keep_area_and_ratio_within_their_ranges() -> None:
    config = AugmentConfig(scale=(0.2, 0.6), ratio=(0.75, 4 / 3))
    _lefts, _tops, widths, heights = crop_boxes(config, sides(1000), sides(1000), uniforms(0, 0, MANY)).T
    areas, ratios = widths * heights / 1e6, widths / heights
    assert 0.199 < areas.min() < 0.21
    assert 0.59 < areas.max() < 0.601
    assert abs(areas.mean() - 0.4) < 0.005
    assert 0.745 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.34


def test_an_image_too_narrow_for_any_try_gives_its_largest_central_box() -> None:
    config = AugmentConfig(scale=(1.0, 1.0), ratio=(0.75, 4 / 3))
    boxes = crop_boxes(config, np.array([1000, 100]), np.array([100, 1000]), uniforms(0, 0, np.arange(2)))
    assert boxes.tolist() == [[0, 433, 100, 133], [433, 0, 133, 100]]


def test_pad_shifts_evenly_by_up_to_pad_pixels_each_way() -> None:
    variations = draw_variations(
        AugmentConfig(crop="pad", pad=2), 28, sides(28), sides(28), uniforms(0, 0, MANY)
    )
    for axis in (0, 1):
        values, counts = np.unique(variations.shifts[:, axis], return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        np.testing.assert_allclose(counts / len(MANY), 0.2, atol=0.015)
    assert (variations.boxes == [0, 0, 28, 28]).all()


@pytest.mark.parametrize(("flip", "expected"), [(True, 0.5), (False, 0.0)])
def test_half_of_the_images_are_mirrored_where_asked(flip: bool, expected: float) -> None:
    variations = draw_variations(AugmentConfig(flip=flip), 28, sides(28), sides(28), uniforms(0, 0, MANY))
    assert abs(variations.flips.mean() - expected) < 0.02


def test_erasing_happens_as_often_as_asked_within_its_area() -> None:
    variations = draw_variations(AugmentConfig(erase=0.25), 224, sides(300), sides(300), uniforms(0, 0, MANY))
    lefts, tops, widths, heights = variations.erasures.T
    happens = widths > 0
    areas = (widths * heights)[happens] / 224**2
    assert abs(happens.mean() - 0.25) < 0.02
    assert 0.019 < areas.min() < 0.03
    assert 0.31 < areas.max() < 0.335
    assert (lefts + widths <= 224).all()
    assert (tops + heights <= 224).all()


def test_switching_erasing_on_leaves_crops_and_flips_as_they_were() -> None:
    u = uniforms(0, 0, np.arange(100))
    plain, erased = (
        draw_variations(AugmentConfig(erase=erase), 64, sides(80)[:100], sides(90)[:100], u)
        for erase in (0.0, 1.0)
    )
    np.testing.assert_array_equal(plain.boxes, erased.boxes)
    np.testing.assert_array_equal(plain.flips, erased.flips)


def test_switching_colours_on_leaves_crops_flips_and_erasures_as_they_were() -> None:
    u, jitter = uniforms(0, 0, np.arange(100)), ColourJitterConfig(brightness=0.4)
    plain, colourful = (
        draw_variations(AugmentConfig(erase=0.5, **more), 64, sides(80)[:100], sides(90)[:100], u)
        for more in ({}, {"randaugment": RandAugmentConfig(), "colour_jitter": jitter})
    )
    for name in ("boxes", "shifts", "flips", "erasures"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(colourful, name))
    assert plain.photometric.shape == (100, 0)
    assert colourful.photometric.shape == (100, photometric.NUM_DRAWS)


def test_views_differ_from_one_another_and_the_first_is_the_one_without_a_view() -> None:
    ids = np.arange(50)
    first, second, third = (uniforms(1, 2, ids, view=view) for view in (0, 1, 2))
    np.testing.assert_array_equal(first, uniforms(1, 2, ids))
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other).all()
    views = np.arange(50) % 3
    together = uniforms(1, 2, ids, view=views)
    np.testing.assert_array_equal(together, np.choose(views[:, None], [first, second, third]))


def digest(*values: np.ndarray) -> str:
    hashed = hashlib.sha256()
    for value in values:
        hashed.update(np.ascontiguousarray(value).astype("<i8").tobytes())
    return hashed.hexdigest()[:16]


def test_the_numbers_of_a_sample_are_those_of_the_first_version() -> None:
    # A run that was begun with an earlier version goes on with the same pixels: computed at its commit 4db771d.
    ids = np.arange(1000) * 7
    u = uniforms(3, 5, ids)
    assert digest(u[:, :46] * 2**53) == "58196d53e5a52986"
    for config, expected in (
        (AugmentConfig(erase=0.25), "d8454e41ca28982c"),
        (AugmentConfig(crop="pad", pad=4, erase=1.0), "79375c3734594af4"),
    ):
        v = draw_variations(config, 224, 200 + ids % 301, 180 + ids % 401, u)
        assert digest(v.boxes, v.shifts, v.flips, v.erasures) == expected
