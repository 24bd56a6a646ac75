from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.pixels.decode import DecodeError, Header, crop_resize, decode, read_header
from tests.support.photographs import encoded, photographs
from tests.support.shards import draw_image, encode

FORMATS = [("jpg", 0), ("png", 1), ("webp", 2)]


@pytest.mark.parametrize(("suffix", "number"), FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_header_gives_format_and_size_without_decoding(suffix: str, number: int, channels: int) -> None:
    data = encode(draw_image(0, 37, 53, channels), suffix)
    assert read_header(data) == Header(number, 37, 53)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3])
def test_png_pixels_equal_what_was_stored_and_are_grey_or_rgb_as_asked(stored: int, channels: int) -> None:
    image = draw_image(0, 37, 53, stored)
    pixels = decode(encode(image), channels=channels)
    assert pixels.shape == (37, 53, channels)
    if stored == channels:
        np.testing.assert_array_equal(pixels, image.reshape(pixels.shape))
    elif channels == 3:
        np.testing.assert_array_equal(pixels, np.repeat(image[:, :, None], 3, axis=2))
    else:
        expected = image @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(pixels[:, :, 0], expected, atol=1)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_pixels_are_those_of_pillow(suffix: str) -> None:
    image = cv2.resize(draw_image(0, 9, 13, 3), (53, 37))
    data = encode(image, suffix)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    # Both use libjpeg-turbo or libwebp; conversions from YCbCr may round differently.
    assert np.abs(decode(data, channels=3).astype(int) - expected).max() <= 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_a_truncated_image_is_named_truncated(suffix: str, fraction: float) -> None:
    data = encode(draw_image(0, 100, 100, 3), suffix)
    with pytest.raises(DecodeError, match=r"^truncated$"):
        decode(data[: int(len(data) * fraction)], channels=3)


def test_a_jpeg_with_less_than_a_bit_per_block_is_refused_before_decoding() -> None:
    data = encode(draw_image(0, 16, 16, 3), "jpg")
    frame = data.index(b"\xff\xc0") + 5
    side = 8 * (int((8 * len(data)) ** 0.5) + 1)
    with pytest.raises(DecodeError, match=r"^truncated$"):
        read_header(data[:frame] + struct.pack(">HH", side, side) + data[frame + 4 :])


def test_the_emptiest_jpeg_there_is_passes() -> None:
    image = np.zeros((4096, 4096, 3), np.uint8)
    for options in ({}, {"progressive": True}):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=1, optimize=True, **options)
        assert decode(file.getvalue(), channels=3).shape == image.shape


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(100), "not an image"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0\x00\x02" + b"abc" * 30, "damaged"),
        (b"RIFF\x50\0\0\0WEBPVP9 " + bytes(100), "damaged"),
    ],
)
def test_what_is_no_image_is_refused_by_its_header_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"^{reason}$"):
        read_header(data)


def test_a_header_that_announces_too_many_pixels_is_refused_before_decoding() -> None:
    body = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    with pytest.raises(DecodeError, match="too many pixels"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk, channels=1)


def test_flipped_bits_inside_a_png_are_damage() -> None:
    data = bytearray(encode(draw_image(0, 100, 100)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DecodeError, match="damaged"):
        decode(bytes(data), channels=1)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([suffix for suffix, _ in FORMATS]), st.binary(max_size=40), st.integers(0, 60))
def test_garbage_in_a_header_raises_nothing_but_decode_errors(suffix: str, garbage: bytes, at: int) -> None:
    data = encode(draw_image(1, 16, 16), suffix)
    broken = data[:at] + garbage + data[at + len(garbage) :]
    try:
        header = read_header(broken)
    except DecodeError:
        return
    if header.height * header.width <= 1 << 20:
        try:
            decode(broken, channels=1)
        except DecodeError:
            return


def test_a_crop_of_the_output_size_is_copied_exactly() -> None:
    image, out = draw_image(0, 40, 50, 3), np.empty((16, 16, 3), np.uint8)
    crop_resize(image, (7, 5, 16, 16), out)
    np.testing.assert_array_equal(out, image[5:21, 7:23])


def test_enlarging_interpolates_between_pixels() -> None:
    image = np.tile(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], (8, 1, 1))
    out = np.empty((16, 16, 1), np.uint8)
    crop_resize(image, (0, 0, 8, 8), out)
    assert (np.diff(out[4, 1:-1, 0].astype(int)) == 5).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_with_a_hole_in_its_codes_is_damaged_and_not_a_picture_of_garbage(channels: int) -> None:
    """A page of zeros, as a torn write leaves it: libjpeg warns of that, and OpenCV would keep silent."""
    data = bytearray(encoded(photographs((640, 480))[0], "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(4096)
    with pytest.raises(DecodeError, match=r"^damaged$"):
        decode(bytes(data), channels=channels)


def test_bytes_between_the_markers_of_a_jpeg_cost_no_pixel_and_are_taken() -> None:
    image = draw_image(0, 64, 64, 3)
    data = encode(image, "jpg")
    end = data.rindex(b"\xff\xd9")
    np.testing.assert_array_equal(
        decode(data[:end] + b"\x11\x22" + data[end:], channels=3), decode(data, channels=3)
    )
