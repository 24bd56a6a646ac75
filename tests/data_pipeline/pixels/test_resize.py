from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_pipeline.pixels.resize import resize_box_into, resize_into
from tests.support.photographs import photographs


def resize_with_pillow(pixels: np.ndarray, side: int) -> np.ndarray:
    square = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).astype(int)


@pytest.mark.parametrize(
    ("size", "mean_error"),
    [
        ((150, 90), 0.3),
        ((224, 300), 1.5),
        ((280, 310), 2),
        ((430, 300), 2),
        ((600, 520), 0.1),
        ((900, 200), 0.1),
    ],
)
def test_squares_are_those_of_pillow_within_a_few_levels(size: tuple[int, int], mean_error: float) -> None:
    for image in photographs(size):
        pixels, out = np.asarray(image), np.empty((224, 224, 3), np.uint8)
        resize_into(pixels, out)
        assert np.abs(out - resize_with_pillow(pixels, 224)).mean() < mean_error


def test_a_part_of_the_squares_size_is_copied() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    out = np.empty((16, 16, 3), np.uint8)
    resize_into(pixels[5:21, 7:23], out)
    np.testing.assert_array_equal(out, pixels[5:21, 7:23])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (16, 16), (20, 20), (33, 18), (90, 5), (500, 400)])
def test_a_plain_colour_stays_what_it_is_at_any_size(size: tuple[int, int], channels: int) -> None:
    out = np.empty((16, 16, channels), np.uint8)
    resize_into(np.full((*size, channels), 177, np.uint8), out)
    assert (out == 177).all()
    resize_box_into(np.full((*size, channels), 178, np.uint8), (0.25, 0.5, size[1] * 0.6, size[0] * 0.4), out)
    assert (out == 178).all()


@pytest.mark.parametrize("size", [(150, 90), (16, 16), (280, 250)])
def test_a_byte_of_padding_after_each_pixel_changes_nothing(size: tuple[int, int]) -> None:
    pixels = np.asarray(photographs(size)[0])
    side = 16 if size == (16, 16) else 224
    padded = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 99, np.uint8)], axis=2)
    out, expected = (np.empty((side, side, 3), np.uint8) for _ in range(2))
    resize_into(padded, out)
    resize_into(pixels, expected)
    assert np.abs(out.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.25, 1.7, 2.1, 2.6])
def test_a_box_between_pixels_is_where_pillow_sees_it(scale: float) -> None:
    side, width = 96, 96 * scale
    image = photographs((300, 300))[2]
    out = np.empty((side, side, 3), np.uint8)
    box = (10.5, 20.25, width, width - 3.5)
    resize_box_into(np.asarray(image), box, out)
    left, top, wide, high = box
    bounds = (left, top, left + wide, top + high)
    expected = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=bounds)).astype(int)
    error = np.abs(out - expected).mean()
    moved = np.abs(np.roll(out, 1, axis=1) - expected).mean()
    assert error < 2 and error < moved / 3
