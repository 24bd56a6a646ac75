from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from data_pipeline.packing.recode import Recoding, recode
from data_pipeline.packing.record import BrokenImage, suffix_of
from data_pipeline.pixels.pillow import FORMATS
from tests.support.images import encoded_image


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners(size: tuple[int, int] = (120, 80)) -> Image.Image:
    """Red at the upper left, green at the upper right, blue at the lower left, white at the lower right."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


@settings(deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    max_side=st.integers(1, 70),
    kind=st.sampled_from(sorted(FORMATS)),
)
def test_sides_fit_proportions_stay_and_nothing_grows(
    width: int, height: int, max_side: int, kind: str
) -> None:
    content = encoded_image(1, "PNG", (width, height))
    result = recode(content, Recoding(max_side=max_side, format=kind))
    image, scale = opened(result), min(1, max_side / max(width, height))
    assert max(image.size) == min(max_side, max(width, height))
    assert abs(image.width - width * scale) <= 1 and abs(image.height - height * scale) <= 1
    assert suffix_of(result) == kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_fits_keeps_its_bytes(kind: str) -> None:
    content = encoded_image(2, kind, (40, 30))
    assert recode(content, Recoding(max_side=40, quality=10)) == content
    assert recode(content, Recoding(max_side=39)) != content


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_side", [None, 60])
def test_images_stand_as_their_exif_tag_says_and_the_tag_is_gone(
    orientation: int, max_side: int | None
) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that the tag undoes
    stored = corners() if orientation == 1 else corners().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(stored, "JPEG", exif=exif, quality=95)
    image = opened(recode(content, Recoding(max_side=max_side)))
    assert image.size == ((120, 80) if max_side is None else (60, 40))
    width, height = image.size
    found = [
        image.getpixel(place) for place in ((2, 2), (width - 3, 2), (2, height - 3), (width - 3, height - 3))
    ]
    for colour, expected in zip(found, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], strict=True):
        assert np.abs(np.subtract(colour, expected)).max() < 40
    assert orientation == 1 or image.getexif().get(0x0112) is None


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_metadata_does_not_come_along(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = saved(corners(), "JPEG", exif=exif, icc_profile=profile, comment=b"Secret words")
    assert b"Secret" in content
    result = recode(content, Recoding(max_side=50, format=kind))
    assert b"Secret" not in result and "icc_profile" not in opened(result).info


def test_pixels_are_near_those_of_a_full_decode_and_one_resize() -> None:
    photograph = corners((640, 480)).resize((641, 479), Image.Resampling.BICUBIC)
    content = saved(photograph, "JPEG", quality=95)
    expected = opened(content).resize((100, 75), Image.Resampling.LANCZOS)
    result = opened(recode(content, Recoding(max_side=100, format="png")))
    difference = np.abs(np.asarray(result, np.int16) - np.asarray(expected, np.int16))
    assert result.size == (100, 75) and difference.mean() < 1.0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_all_kinds_of_pixels_become_eight_bit_images(mode: str, kind: str) -> None:
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    content = saved(image, "JPEG" if mode == "CMYK" else "PNG")
    result = opened(recode(content, Recoding(max_side=20, format=kind)))
    assert result.size == (20, 15) and result.mode in ("L", "RGB", "RGBA", "LA")
    if mode != "1":
        grey = np.asarray(result.convert("RGB").convert("L"), np.int16)
        assert np.abs(grey[7] - np.linspace(3, 252, 20)).max() < 16


def test_quality_is_that_of_what_is_encoded() -> None:
    content = encoded_image(3, "PNG", (64, 64))
    sizes = [len(recode(content, Recoding(format="jpg", quality=quality))) for quality in (20, 60, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9])
def test_an_image_that_is_cut_short_does_not_decode_even_where_it_would_keep_its_bytes(
    kind: str, fraction: float
) -> None:
    content = encoded_image(4, kind, (200, 150))
    for recoding in (Recoding(max_side=500), Recoding(max_side=50)):
        with pytest.raises(BrokenImage):
            recode(content[: int(len(content) * fraction)], recoding)


def test_no_image_and_a_bomb_are_refused_by_their_first_bytes() -> None:
    with pytest.raises(BrokenImage, match="not an image"):
        recode(b"<html>gone</html>", Recoding(max_side=5))
    bomb = bytearray(encoded_image(5))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    with pytest.raises(BrokenImage, match="too many pixels"):
        recode(bytes(bomb), Recoding(max_side=5))
