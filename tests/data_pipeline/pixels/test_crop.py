from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.pixels.crop import decode_crop
from data_pipeline.pixels.decode import DecodeError, read_header
from data_pipeline.pixels.exact import decode_crop_exactly
from tests.support.photographs import encoded, photographs, random_boxes

MIN_MEAN_PSNR, MIN_PSNR = 44.0, 28.0


def psnr(pixels: np.ndarray, expected: np.ndarray) -> float:
    squared = np.mean((pixels.astype(float) - expected) ** 2)
    return float(10 * np.log10(255**2 / max(squared, 1e-3)))


def fidelity(
    data: bytes, boxes: list[tuple[int, int, int, int]], side: int, channels: int = 3
) -> list[float]:
    header = read_header(data)
    found = []
    for box in boxes:
        fast, exact = (np.empty((side, side, channels), np.uint8) for _ in range(2))
        decode_crop(data, header, box, fast)
        decode_crop_exactly(data, header, box, exact)
        found.append(psnr(fast, exact))
    return found


def test_240_fast_crops_of_real_photographs_are_close_to_pillows() -> None:
    rng = np.random.default_rng(0)
    found = []
    for image in photographs((500, 375)):
        found += fidelity(encoded(image, quality=90), random_boxes(rng, 500, 375, 80), 224)
    assert np.mean(found) >= MIN_MEAN_PSNR and min(found) >= MIN_PSNR


@pytest.mark.parametrize(("kind", "channels"), [("JPEG", 3), ("PNG", 3), ("JPEG", 1)])
@pytest.mark.parametrize("side", [64, 224, 400])
def test_bicubic_crops_are_pillows_to_a_few_levels(kind: str, channels: int, side: int) -> None:
    data = encoded(photographs((333, 251))[0], kind)
    header, rng = read_header(data), np.random.default_rng(3)
    for box in random_boxes(rng, 333, 251, 5):
        fast, exact = (np.empty((side, side, channels), np.uint8) for _ in range(2))
        decode_crop(data, header, box, fast, bicubic=True)
        decode_crop_exactly(data, header, box, exact, bicubic=True)
        # Edges of a part lack the chroma beside it; elsewhere the two filters round differently.
        assert psnr(fast, exact) >= (MIN_MEAN_PSNR if kind == "PNG" or channels == 1 else MIN_PSNR)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"quality": 90}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_are_as_close(kind: str, options: dict[str, object], channels: int) -> None:
    rng = np.random.default_rng(1)
    found = []
    for image in photographs((333, 251)):
        found += fidelity(encoded(image, kind, **options), random_boxes(rng, 333, 251, 6), 160, channels)
    assert np.mean(found) >= MIN_MEAN_PSNR and min(found) >= MIN_PSNR


@pytest.mark.parametrize("side", [64, 224, 384])
def test_crops_of_large_photographs_are_as_close_where_a_smaller_decode_is_enough(side: int) -> None:
    rng = np.random.default_rng(2)
    found = []
    for image in photographs((1203, 901)):
        sharp = Image.fromarray(np.asarray(image) ^ rng.integers(0, 8, (901, 1203, 3), dtype=np.uint8))
        boxes = [(0, 0, 1203, 901), (3, 5, 1190, 890), *random_boxes(rng, 1203, 901, 4)]
        found += fidelity(encoded(sharp, quality=92), boxes, side)
    assert np.mean(found) >= MIN_MEAN_PSNR and min(found) >= MIN_PSNR


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whole_images_of_the_squares_own_size_are_decoded_without_resizing(kind: str) -> None:
    data = encoded(photographs((64, 64))[0], kind)
    assert fidelity(data, [(0, 0, 64, 64)], 64)[0] > (55 if kind == "WEBP" else 75)


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_of_other_colour_spaces_give_the_right_colours(mode: str) -> None:
    data = encoded(photographs((200, 150))[1].convert(mode), quality=95)
    assert min(fidelity(data, [(0, 0, 200, 150), (20, 30, 100, 90)], 64)) > 35


def test_without_turbojpeg_crops_are_the_same_within_a_level(tmp_path: Path) -> None:
    # A module of this name in front of the wheel's hides the library, as another binding of that name would.
    (tmp_path / "turbojpeg.py").write_text("")
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    if found.stdout.strip() == "available":
        pytest.skip("this machine has TurboJPEG 3 of its own")
    assert "TurboJPEG 3 was not found" in found.stderr and found.stderr.count("WARNING") == 1
    with_library = crops_of_one_photograph()
    without = np.load(tmp_path / "crops.npy")
    assert np.abs(with_library.astype(int) - without)[:3].max() <= 1
    assert psnr(without[3], with_library[3]) > 40  # of the last, the library decodes half the size


def crops_of_one_photograph() -> np.ndarray:
    data = encoded(photographs((640, 480))[0], quality=90)
    boxes = [(3, 5, 190, 201), (0, 0, 128, 128), (101, 33, 144, 160), (7, 9, 501, 444)]
    crops = np.empty((len(boxes), 128, 128, 3), np.uint8)
    for box, out in zip(boxes, crops, strict=True):
        decode_crop(data, read_header(data), box, out)
    return crops


WITHOUT = f"""
import logging, sys
sys.path[:0] = [sys.argv[1], {str(Path(__file__).parents[3])!r}]
logging.basicConfig()
import numpy as np
from data_pipeline.pixels.jpeg import is_available
if is_available():
    sys.exit(print("available"))
import importlib.util
spec = importlib.util.spec_from_file_location("these_tests", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
np.save(sys.argv[1] + "/crops.npy", tests.crops_of_one_photograph())
"""


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_files_give_a_square_or_a_decode_error(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(SMALL_FILES))
    broken = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        broken[at] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.integers(0, len(whole))) if data.draw(st.booleans()) else None]
    out = np.empty((32, 32, 3), np.uint8)
    for crop in (decode_crop, decode_crop_exactly):
        try:
            header = read_header(bytes(broken))
            if header.height * header.width < 1 << 20:
                side = min(header.height, header.width)
                crop(bytes(broken), header, (header.width - side, 0, side, side), out)
        except DecodeError as error:
            assert error.reason in ("truncated", "damaged", "not an image", "empty", "too many pixels")


SMALL_FILES = [
    encoded(photographs((90, 70))[0], kind, **options)
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    )
]
