from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.base import ConfigError
from configs.data import AugmentConfig, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.inspection.inspect import summarize, write_contact_sheet
from data_pipeline.inspection.recipe import load_recipe, write_augmented_sheet
from data_pipeline.mix import draw_mix
from data_pipeline.reader import SampleReader
from data_pipeline.reindex import index_shards
from tests.support.shards import draw_image, encode, make_shards, write_tar


def test_counts_sizes_and_balance_are_those_of_the_shards(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [7, 4], num_classes=3, size=(20, 30))
    sizes = sorted(len(encode(draw_image(number, 20, 30))) for number in range(11))
    summary = summarize(index)
    assert (summary.num_samples, summary.num_shards, summary.samples_per_shard) == (11, 2, (4, 7))
    assert summary.num_bytes == sum(
        (tmp_path / name).stat().st_size for name in ("test-000000.tar", "test-000001.tar")
    )
    assert summary.image_bytes == (sizes[0], sizes[5], sizes[-1])
    assert summary.classes == {"0": 4, "1": 4, "2": 3}
    assert (summary.formats, summary.resolutions, summary.num_unlabelled) == ({"png": 11}, {"30 x 20": 11}, 0)
    assert json.loads(json.dumps(summary.as_json()))["digest"] == index.digest


def test_unlabelled_and_damaged_images_are_counted(tmp_path: Path) -> None:
    summary = summarize(make_shards(tmp_path, [5], num_classes=None, bad={2: b"broken"}))
    assert (summary.classes, summary.num_unlabelled, summary.num_unreadable) == ({}, 5, 1)


def test_the_contact_sheet_has_a_row_of_images_per_class(tmp_path: Path) -> None:
    write_contact_sheet(make_shards(tmp_path, [8], num_classes=2, channels=3), tmp_path / "new" / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (2 * (96 + 18), 10 * 96, 3)
    # Class 1 shows samples 1, 3, 5 and 7; an enlarged image keeps its mean colour (the file is BGR).
    for place, number in enumerate((1, 3, 5, 7)):
        tile = sheet[96 + 18 + 18 :, 96 * place : 96 * (place + 1), ::-1]
        np.testing.assert_allclose(tile.mean((0, 1)), draw_image(number, channels=3).mean((0, 1)), atol=6)


def test_a_contact_sheet_is_drawn_of_unlabelled_and_damaged_images_too(tmp_path: Path) -> None:
    write_contact_sheet(
        make_shards(tmp_path, [3], num_classes=None, bad={1: b"broken"}), tmp_path / "sheet.png"
    )
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 96 + 18
    assert sheet[60, 96 + 48].tolist() == [30, 30, 200]


def test_a_contact_sheet_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sheet\.jpg: a contact sheet is a PNG"):
        write_contact_sheet(make_shards(tmp_path, [3]), tmp_path / "sheet.jpg")


def test_shorter_sides_are_counted_in_bins_that_double(tmp_path: Path) -> None:
    members = [
        (f"{n}.png", encode(draw_image(n, *size))) for n, size in enumerate([(20, 90), (31, 31), (130, 140)])
    ]
    write_tar(tmp_path / "a.tar", members)
    summary = summarize(index_shards(str(tmp_path)))
    assert summary.shorter_sides == {"16-31": 2, "32-63": 0, "64-127": 0, "128-255": 1}


def test_the_augmented_sheet_shows_what_the_reader_makes_of_each_image(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "data", [12], num_classes=None, channels=3, size=(32, 32))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {train: x, image_size: 32, augment: {crop: random_resized, erase: 1.0}}\n"
        "train: {duration: 1 epochs, global_batch: 4, seed: 7}\nteacher: {of: another program}\n"
    )
    write_augmented_sheet(index, load_recipe(recipe), tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[:, :, ::-1]
    assert sheet.shape == (10 * (18 + 100), 10 * 100 - 4, 3)
    data = DataConfig.model_validate(
        {"train": "x", "image_size": 32, "augment": {"crop": "random_resized", "erase": 1.0}}
    )
    for row, sample_id in ((0, 0), (9, 11)):
        tiles = sheet[row * 118 + 18 : row * 118 + 18 + 96]
        np.testing.assert_array_equal(tiles[::3, :96:3], draw_image(sample_id, 32, 32, 3))
        for epoch in range(9):
            drawn = np.zeros((1, 32, 32, 3), np.uint8)
            SampleReader(index, data).read_varied(
                np.zeros(1, np.int64), np.array([sample_id]), drawn, augment=data.augment, seed=7, epoch=epoch
            )
            left = (1 + epoch) * 100
            np.testing.assert_array_equal(tiles[::3, left : left + 96 : 3], drawn[0])


def test_the_sheet_of_a_recipe_that_mixes_shows_rows_mixed_with_one_another_and_the_copies_of_each_pass(
    tmp_path: Path,
) -> None:
    index = make_shards(tmp_path / "data", [11], num_classes=None, channels=3, size=(32, 32))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {train: x, image_size: 32, repeats: 4, augment: {crop: none, flip: false, cutmix: 1.0}}\n"
        "train: {duration: 1 epochs, global_batch: 4, seed: 7}\n"
    )
    write_augmented_sheet(index, load_recipe(recipe), tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[:, :, ::-1]
    shown = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
    plain = np.stack([draw_image(number, 32, 32, 3) for number in shown.tolist()])
    for variant in range(9):
        epoch, copy = np.full(10, variant // 4), np.full(10, variant % 4)
        config = AugmentConfig(cutmix=1.0)
        mix = draw_mix(config, size=32, seed=7, epochs=epoch, sample_ids=shown, copies=copy)
        left = (1 + variant) * 100
        for row, (x, y, width, height) in enumerate(mix.boxes.tolist()):
            expected = plain[row].copy()
            expected[y : y + height, x : x + width] = plain[row ^ 1, y : y + height, x : x + width]
            tile = sheet[row * 118 + 18 : row * 118 + 114 : 3, left : left + 96 : 3]
            np.testing.assert_array_equal(tile, expected)


def test_a_mistake_in_the_recipe_of_a_sheet_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {train: x, augment: {flop: true}}\n")
    with pytest.raises(ConfigError, match=r"augment\.flop: no such key; did you mean 'flip'"):
        load_recipe(tmp_path / "recipe.yaml")
