"""Restart markers: the same pixels, places to begin at in every row, and images that cannot have them left alone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.base import ConfigError
from configs.data import DataConfig
from data_pipeline.loader import ShardLoader
from data_pipeline.packing.pack import build
from data_pipeline.packing.restart_markers import jpegtran_version, with_restart_markers
from data_pipeline.packing.shard_writer import Treatment
from data_pipeline.pixels.jpeg_frame import read_frame
from data_pipeline.reindex import index_shards
from tests.support.photographs import encoded, photographs

needs_jpegtran = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="jpegtran is not installed: apt-get install libjpeg-turbo-progs"
)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@needs_jpegtran
@pytest.mark.parametrize("size", [(333, 251), (500, 375), (17, 400), (8, 8)])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}],
    ids=["4:4:4", "4:2:2", "4:2:0", "progressive"],
)
def test_no_pixel_changes_and_each_row_has_markers_at_the_same_places(
    size: tuple[int, int], options: dict[str, object]
) -> None:
    plain = encoded(photographs(size)[0], quality=92, **options)
    marked = with_restart_markers(plain)
    np.testing.assert_array_equal(pixels(marked), pixels(plain))
    frame = read_frame(marked)
    assert frame is not None and frame.is_one_scan
    assert frame.interval and frame.units_per_row % frame.interval == 0
    sequential = encoded(photographs(size)[0], quality=92, **{**options, "progressive": False})
    assert len(marked) < 1.04 * len(sequential) + 100


@needs_jpegtran
def test_pieces_are_about_64_pixels_wide_where_a_row_can_be_divided_so() -> None:
    widths = {}
    for width in (512, 496, 500, 640):  # of 16 pixels: 32, 31, 32 and 40 units
        frame = read_frame(with_restart_markers(encoded(photographs((width, 64))[0], subsampling=2)))
        assert frame is not None
        widths[width] = frame.interval * frame.unit_width
    assert widths == {512: 64, 496: 16, 500: 64, 640: 64}


@needs_jpegtran
def test_a_grey_image_and_what_a_camera_wrote_beside_the_pixels_stay() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(photographs((200, 120))[2].convert("L"), exif=exif, comment=b"a note")
    marked = Image.open(io.BytesIO(with_restart_markers(plain)))
    assert marked.mode == "L" and marked.getexif()[0x0112] == 6 and marked.info["comment"] == b"a note"
    assert np.array_equal(np.asarray(marked), pixels(plain))


@needs_jpegtran
def test_what_cannot_be_taken_apart_without_a_warning_keeps_its_bytes() -> None:
    whole = encoded(photographs((200, 120))[1])
    for content in (whole[:-400], whole[:300], b"\xff\xd8\xff", encoded(photographs((20, 12))[1], "PNG")):
        assert with_restart_markers(content) == content


@needs_jpegtran
def test_training_sees_the_same_pixels_in_the_same_order(tmp_path: Path) -> None:
    for place, photograph in enumerate(photographs((320, 240))):
        folder = tmp_path / "in" / "abc"[place]
        folder.mkdir(parents=True)
        for number in range(3):
            photograph.rotate(20 * number).save(folder / f"{number}.jpg", quality=90)
    build(tmp_path / "in", tmp_path / "plain")
    build(tmp_path / "in", tmp_path / "marked", treatment=Treatment(restart_markers=True))
    again = build(tmp_path / "in", tmp_path / "again", treatment=Treatment(restart_markers=True))
    assert again.num_samples == 9
    shard = "train-000000.tar"
    assert (tmp_path / "marked" / shard).read_bytes() == (tmp_path / "again" / shard).read_bytes()
    assert (tmp_path / "marked" / shard).read_bytes() != (tmp_path / "plain" / shard).read_bytes()

    batches = {}
    for name in ("plain", "marked"):
        data = DataConfig(train="x", image_size=96, workers=0)
        loader = ShardLoader(index_shards(str(tmp_path / name)), data, global_batch=3, seed=0)
        served = iter(loader)
        batches[name] = [next(served) for _ in range(9)]
    for plain, marked in zip(batches["plain"], batches["marked"], strict=True):
        assert np.array_equal(plain.images, marked.images) and np.array_equal(plain.targets, marked.targets)


@needs_jpegtran
def test_a_build_with_other_markers_is_another_build() -> None:
    assert Treatment(restart_markers=True).fingerprint() != Treatment().fingerprint()
    assert jpegtran_version() in Treatment(restart_markers=True).fingerprint()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            None,
            r"--restart-markers: jpegtran cannot be run \(No such file or directory\); it comes with libjpeg-turbo",
        ),
        (
            "echo 'unrecognized option' >&2; exit 1",
            r"this jpegtran cannot do it \(unrecognized option\): the one of",
        ),
    ],
    ids=["missing", "too old"],
)
def test_without_a_jpegtran_that_can_do_it_a_build_says_where_it_comes_from(
    script: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "jpegtran").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "jpegtran").chmod(0o755)
    jpegtran_version.cache_clear()
    (tmp_path / "in" / "a").mkdir(parents=True)
    photographs((32, 32))[0].save(tmp_path / "in" / "a" / "0.jpg")
    with pytest.raises(ConfigError, match=said):
        build(tmp_path / "in", tmp_path / "out", treatment=Treatment(restart_markers=True))
    jpegtran_version.cache_clear()
