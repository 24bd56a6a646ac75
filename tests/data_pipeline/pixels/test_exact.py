from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional as F

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
