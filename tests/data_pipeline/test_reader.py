from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs.data import AugmentConfig, DataConfig
from data_pipeline import reader as reader_room
from data_pipeline.index import ShardIndex
from data_pipeline.pixels.augment import draw_variations, uniforms
from data_pipeline.reader import SampleReader
from data_pipeline.reindex import index_shards
from tests.support.photographs import encoded, photographs
from tests.support.shards import write_tar

SIDE, SEED, EPOCH = 96, 3, 2
FILES = [
    encoded(image, kind) for image in photographs((200, 150)) for kind in ("JPEG", "PNG", "WEBP", "JPEG")
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder: Path = tmp_path_factory.mktemp("shards")
    kinds = ("jpg", "png", "webp", "jpg")
    write_tar(
        folder / "photos-000000.tar", [(f"{i:03d}.{kinds[i % 4]}", data) for i, data in enumerate(FILES)]
    )
    return index_shards(str(folder))


def read(index: ShardIndex, augment: AugmentConfig, mode: str, channels: int = 3) -> np.ndarray:
    statistics = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    data = DataConfig(
        train="", image_size=SIDE, channels=channels, decode=mode, augment=augment, **statistics
    )
    images = np.zeros((len(FILES), SIDE, SIDE, channels), np.uint8)
    every = np.arange(len(FILES))
    reader = SampleReader(index, data)
    assert not reader.read_varied(every, every, images, augment=augment, seed=SEED, epoch=EPOCH)
    return images


@pytest.mark.parametrize("channels", [1, 3])
def test_exact_reading_equals_plain_pillow_on_the_drawn_boxes(index: ShardIndex, channels: int) -> None:
    augment = AugmentConfig(crop="random_resized", flip=True)
    images = read(index, augment, "exact", channels)
    sizes = np.full(len(FILES), 150), np.full(len(FILES), 200)
    drawn = draw_variations(augment, SIDE, *sizes, uniforms(SEED, EPOCH, np.arange(len(FILES))))
    assert drawn.flips.any() and not drawn.flips.all()
    for data, box, flip, image in zip(FILES, drawn.boxes.tolist(), drawn.flips, images, strict=True):
        left, top, width, height = box
        whole = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
        part = whole.crop((left, top, left + width, top + height))
        square = part.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        expected = np.asarray(ImageOps.mirror(square) if flip else square)
        np.testing.assert_array_equal(image, expected.reshape(image.shape))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_fast_reading_shows_what_exact_reading_shows(index: ShardIndex, crop: str, channels: int) -> None:
    augment = AugmentConfig(crop=crop, flip=True, pad=8 if crop == "pad" else 0, erase=0.5)
    fast, exact = (read(index, augment, mode, channels).astype(float) for mode in ("fast", "exact"))
    squared = np.square(fast - exact).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(squared, 1e-3))
    assert psnr.min() >= 28 and psnr.mean() >= 44


def test_colours_are_changed_between_mirroring_and_erasing(index: ShardIndex) -> None:
    plain = AugmentConfig(crop="random_resized", flip=True)
    jitter = {"brightness": 0.9}
    coloured = read(index, AugmentConfig(crop="random_resized", flip=True, colour_jitter=jitter), "fast")
    erased = read(
        index, AugmentConfig(crop="random_resized", flip=True, colour_jitter=jitter, erase=1), "fast"
    )
    assert (coloured != read(index, plain, "fast")).any(axis=(1, 2, 3)).all()
    mean_colour = np.array([128, 128, 128])
    changed = (erased != coloured).any(axis=-1)
    assert changed.any() and (erased[changed] == mean_colour).all()


def test_a_batch_of_large_files_is_read_twice_and_does_not_lie_in_memory(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = AugmentConfig(crop="random_resized", flip=True)
    expected = read(index, augment, "fast")
    for most in (0, max(map(len, FILES))):
        monkeypatch.setattr(reader_room, "_MOST_HELD", most)
        np.testing.assert_array_equal(read(index, augment, "fast"), expected)
        encoded_now, bad = SampleReader(index, DataConfig(train="", image_size=SIDE))._fetch(
            np.arange(len(FILES)), np.arange(len(FILES))
        )
        assert not bad and sum(len(sample.data or b"") for sample in encoded_now) <= most
