"""data.eval_crop and data.interpolation: images reach the network as timm's own transform would give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from configs.data import DataConfig
from data_pipeline.pixels.augment import central_squares
from data_pipeline.reader import SampleReader
from data_pipeline.reindex import index_shards
from tests.support.photographs import encoded, photographs
from tests.support.shards import write_tar

SIDE = 96


def test_the_square_is_central_and_a_part_of_the_shorter_side() -> None:
    heights, widths = np.array([200, 100, 96]), np.array([300, 401, 96])
    boxes = central_squares(0.5, 50, heights, widths).boxes
    np.testing.assert_array_equal(boxes, [[100, 50, 100, 100], [175, 25, 50, 50], [24, 24, 48, 48]])
    whole = central_squares(1.0, 50, heights, widths).boxes
    np.testing.assert_array_equal(whole, [[50, 0, 200, 200], [150, 0, 100, 100], [0, 0, 96, 96]])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("part", [0.875, 1.0])
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_evaluation_sees_what_timms_transform_gives(
    interpolation: str, part: float, decode: str, tmp_path: Path
) -> None:
    images = photographs((320, 240))
    write_tar(
        tmp_path / "a-000000.tar", [(f"{i}.png", encoded(image, "PNG")) for i, image in enumerate(images)]
    )
    index = index_shards(str(tmp_path))
    data = DataConfig.model_validate(
        {
            "train": str(tmp_path),
            "image_size": SIDE,
            "eval_crop": part,
            "interpolation": interpolation,
            "decode": decode,
        }
    )
    ids = np.arange(len(images))
    found = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    assert not SampleReader(index, data).read_whole(ids, ids, found)
    transform = create_transform((3, SIDE, SIDE), crop_pct=part, interpolation=interpolation, normalize=False)
    for pixels, image in zip(found, images, strict=True):
        expected = transform(image).permute(1, 2, 0).numpy()
        squeezed = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        # timm crops what it resized, to whole pixels, and this resizes what it crops.
        assert distance(pixels, expected) < 0.4 * distance(squeezed, expected)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())
