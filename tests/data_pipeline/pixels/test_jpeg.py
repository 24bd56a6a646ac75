from __future__ import annotations

import io
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.pixels.decode import DecodeError, decode
from data_pipeline.pixels.excerpt import cut
from data_pipeline.pixels.jpeg import MAX_SCANS, SHRINKS, decode_part, is_available
from tests.support.photographs import encoded, photographs

pytestmark = pytest.mark.skipif(not is_available(), reason="TurboJPEG 3 is not on this machine")

SIZES = [(333, 251), (65, 63), (17, 19), (1, 1)]
KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True},
    "restart markers": {"subsampling": 2, "restart_marker_blocks": 7},
    "restart markers everywhere": {"subsampling": 2, "restart_marker_blocks": 1},
    "4:4:4, restart markers": {"subsampling": 0, "restart_marker_blocks": 3},
    "4:2:2, restart markers": {"subsampling": 1, "restart_marker_blocks": 1},
    "optimized": {"subsampling": 2, "optimize": True},
}
OPENCV_KINDS = {"4:4:0": 0x121111, "4:1:1": 0x411111}
MARKED = ", restart markers"
OTHER_KINDS = [f"{name}{marked}" for name in (*OPENCV_KINDS, "grey") for marked in ("", MARKED)]


def draw_jpeg(kind: str, size: tuple[int, int]) -> bytes:
    image = photographs(size)[1]
    name, is_marked = kind.removesuffix(MARKED), kind.endswith(MARKED)
    if name in OPENCV_KINDS:
        pixels = np.asarray(image)[:, :, ::-1]
        option = [
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            OPENCV_KINDS[name],
            cv2.IMWRITE_JPEG_RST_INTERVAL,
            int(is_marked),
        ]
        return cv2.imencode(".jpg", pixels, option)[1].tobytes()
    if name == "grey":
        return encoded(image.convert("L"), quality=90, restart_marker_blocks=int(is_marked))
    return encoded(image, quality=90, **KINDS[kind])


@pytest.mark.parametrize(
    "kind", [kind for kind in (*KINDS, *OTHER_KINDS) if kind.startswith(("4", "grey", "restart"))]
)
def test_of_those_with_markers_a_part_is_cut_out(kind: str) -> None:
    is_cut = cut(draw_jpeg(kind, (336, 248)), (150, 100, 200, 150), context=2) is not None
    assert is_cut == ("restart markers" in kind)


def decode_with_pillow(data: bytes, mode: str, shrink: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // shrink, image.height // shrink))
    return np.asarray(image.convert(mode))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*KINDS, *OTHER_KINDS])
def test_a_part_has_the_pixels_of_pillows_full_decode_bit_for_bit(kind: str, size: tuple[int, int]) -> None:
    data = draw_jpeg(kind, size)
    whole = decode_with_pillow(data, "RGB", 1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        right, bottom = (int(rng.integers(1, side + 1)) for side in size)
        left, top = int(rng.integers(0, right)), int(rng.integers(0, bottom))
        for depth in (3, 4):
            part = decode_part(data, (size[1], size[0]), (left, top, right, bottom), depth=depth)
            np.testing.assert_array_equal(part[:, :, :3], whole[top:bottom, left:right])


@pytest.mark.parametrize("shrink", SHRINKS)
@pytest.mark.parametrize("kind", [*KINDS, *OTHER_KINDS])
def test_a_shrunken_part_has_the_pixels_of_pillows_shrunken_decode(kind: str, shrink: int) -> None:
    size = (336, 248)  # multiples of 8: Pillow would take the next larger size of others
    data = draw_jpeg(kind, size)
    whole = decode_with_pillow(data, "RGB", shrink)
    height, width = whole.shape[:2]
    assert (width, height) == (size[0] // shrink, size[1] // shrink)
    rng = np.random.default_rng(0)
    for _ in range(20):
        right, bottom = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        left, top = int(rng.integers(0, right)), int(rng.integers(0, bottom))
        part = decode_part(data, (248, 336), (left, top, right, bottom), depth=3, shrink=shrink)
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_grey_is_the_brightness_that_a_colour_jpeg_stores() -> None:
    data = draw_jpeg("4:2:0", (333, 251))
    image = Image.open(io.BytesIO(data))
    image.draft("L", image.size)
    part = decode_part(data, (251, 333), (30, 20, 300, 200), depth=1)
    np.testing.assert_array_equal(part[:, :, 0], np.asarray(image)[20:200, 30:300])


def test_what_the_whole_decoder_has_to_judge_is_left_to_it() -> None:
    photograph = photographs((64, 48))[0]
    data, box = encoded(photograph), (0, 0, 8, 8)
    assert decode_part(data, (48, 64), box, depth=3) is not None
    assert decode_part(encoded(photograph.convert("CMYK")), (48, 64), box, depth=3) is None
    assert decode_part(data[: len(data) * 3 // 4], (48, 64), box, depth=3) is None
    assert decode_part(data, (64, 48), box, depth=3) is None  # the index or header said something else
    assert decode_part(b"\xff\xd8\xff" + bytes(20) + b"\xff\xd9", (48, 64), box, depth=3) is None
    assert decode_part(data, (48, 64), box, depth=3) is not None


def test_a_progressive_jpeg_of_endless_scans_is_refused_at_once() -> None:
    data = draw_jpeg("progressive", (333, 251))
    last = data.rfind(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * (100 * MAX_SCANS) + data[-2:]
    started = time.process_time()
    assert decode_part(bomb, (251, 333), (0, 0, 16, 16), depth=3) is None
    with pytest.raises(DecodeError, match="damaged"):
        decode(bomb, channels=3)
    assert time.process_time() - started < 5


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_jpegs_give_pixels_or_none_and_leave_the_next_one_alone(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["4:2:0", "4:4:4", "progressive", "restart markers", "grey"]))
    whole = ENCODED[kind]
    broken = bytearray(whole)
    for at in data.draw(st.lists(st.integers(2, len(whole) - 1), max_size=4)):
        broken[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    broken = broken[: cut if data.draw(st.booleans()) else None] + data.draw(
        st.sampled_from([b"", b"\xff\xd9"])
    )
    shrink = data.draw(st.sampled_from(SHRINKS))
    box = (5 // shrink, 3 // shrink, -(-60 // shrink), -(-41 // shrink))
    part = decode_part(bytes(broken), (63, 65), box, depth=3, shrink=shrink)
    assert part is None or part.shape == (box[3] - box[1], box[2] - box[0], 3)
    np.testing.assert_array_equal(
        decode_part(whole, (63, 65), (5, 3, 60, 41), depth=3), WHOLE[kind][3:41, 5:60]
    )


ENCODED = {kind: draw_jpeg(kind, (65, 63)) for kind in [*KINDS, "grey"]}
WHOLE = {kind: decode_with_pillow(data, "RGB", 1) for kind, data in ENCODED.items()}
