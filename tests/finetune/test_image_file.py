"""finetune.image_file: a user's image is prepared as evaluation prepares those of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.data import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.reader import SampleReader
from finetune.image_file import read_image_file
from tests.support.shards import draw_image, encode, make_shards


@pytest.mark.parametrize("eval_crop", [None, 0.875])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_file_gives_the_pixels_that_it_gives_in_a_shard(
    tmp_path: Path, interpolation: str, eval_crop: float | None
) -> None:
    index = make_shards(tmp_path / "shards", [1], size=(40, 60), channels=3)
    (tmp_path / "image.png").write_bytes(encode(draw_image(0, 40, 60, 3)))
    config = DataConfig.model_validate(
        {"train": "shards", "image_size": 24, "interpolation": interpolation, "eval_crop": eval_crop}
    )
    pixels = np.empty((1, 24, 24, 3), np.uint8)
    first = np.zeros(1, np.int64)
    assert SampleReader(index, config).read_whole(first, first, pixels) == {}
    np.testing.assert_array_equal(read_image_file(tmp_path / "image.png", config), pixels[0])


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    config = DataConfig.model_validate({"train": "shards", "image_size": 24})
    with pytest.raises(DataError, match=r"photo\.jpg/x\.png' cannot be read: Not a directory"):
        read_image_file(tmp_path / "photo.jpg" / "x.png", config)
