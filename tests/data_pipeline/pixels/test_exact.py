from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional as F

from data_pipeline.packing.recode import Recoding, recode
from data_pipeline.packing.record import BrokenImage
from data_pipeline.pixels.crop import decode_crop
from data_pipeline.pixels.decode import DecodeError, read_header
from data_pipeline.pixels.exact import decode_crop_exactly
from tests.support.photographs import encoded, photographs, random_boxes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_exact_crops_are_those_of_pillow_and_torchvision(kind: str, mode: str, channels: int) -> None:
    data = encoded(photographs((300, 200))[0], kind)
    header, out = read_header(data), np.empty((64, 64, channels), np.uint8)
    for left, top, width, height in random_boxes(np.random.default_rng(0), 300, 200, 10):
        decode_crop_exactly(data, header, (left, top, width, height), out)
        image = Image.open(io.BytesIO(data)).convert(mode)
        expected = F.resized_crop(image, top, left, height, width, [64, 64])
        np.testing.assert_array_equal(out, np.asarray(expected).reshape(64, 64, channels))
        cropped = image.crop((left, top, left + width, top + height))
        plain = np.asarray(cropped.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(out, plain.reshape(64, 64, channels))
        decode_crop_exactly(data, header, (left, top, width, height), out, bicubic=True)
        sharp = np.asarray(cropped.resize((64, 64), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(out, sharp.reshape(64, 64, channels))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exact_decoding_names_what_is_truncated_or_damaged(kind: str) -> None:
    data = encoded(photographs((300, 200))[0], kind)
    out = np.empty((64, 64, 3), np.uint8)
    with pytest.raises(DecodeError, match=r"truncated|damaged"):
        decode_crop_exactly(data[: len(data) // 2], read_header(data), (0, 0, 300, 200), out)


def with_second_frame(data: bytes) -> bytes:
    """A JPEG that says behind its size that it is 65,000 x 65,000."""
    start = data.index(b"\xff\xc0")
    length = int.from_bytes(data[start + 2 : start + 4], "big") + 2
    frame = data[start : start + length]
    huge = frame[:5] + struct.pack(">HH", 65_000, 65_000) + frame[9:]
    return data[: start + length] + huge + data[start + length :]


def with_second_size(data: bytes) -> bytes:
    """A PNG that does."""
    body = b"IHDR" + struct.pack(">II", 65_000, 65_000) + data[24:29]
    return data[:33] + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


@pytest.mark.parametrize(("kind", "bomb"), [("JPEG", with_second_frame), ("PNG", with_second_size)])
def test_an_image_that_grows_behind_its_header_is_damaged(kind: str, bomb: Callable[[bytes], bytes]) -> None:
    data = bomb(encoded(photographs((16, 16))[0], kind))
    out = np.empty((8, 8, 3), np.uint8)
    with pytest.raises(DecodeError, match=r"^damaged$"):
        decode_crop_exactly(data, read_header(data), (0, 0, 16, 16), out)
    with pytest.raises(BrokenImage):
        recode(data, Recoding(max_side=8))


def test_a_jpeg_with_more_scans_than_any_encoder_writes_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    photographs((300, 200))[0].convert("L").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    data = data[:-2] + 150 * last + data[-2:]
    with pytest.raises(DecodeError, match=r"^damaged$"):
        decode_crop_exactly(data, read_header(data), (0, 0, 300, 200), np.empty((8, 8, 1), np.uint8))
    with pytest.raises(BrokenImage, match="damaged"):
        recode(data, Recoding(max_side=8))


def test_of_16_bits_of_grey_both_ways_of_decoding_keep_the_upper_eight() -> None:
    ramp = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    data, exact, fast = file.getvalue(), *(np.empty((64, 64, 1), np.uint8) for _ in range(2))
    decode_crop_exactly(data, read_header(data), (0, 0, 64, 64), exact)
    decode_crop(data, read_header(data), (0, 0, 64, 64), fast)
    np.testing.assert_array_equal(exact[:, :, 0], ramp >> 8)
    assert np.abs(fast.astype(int) - exact).max() <= 1
