"""Excerpts: fewer codes to read for the same pixels, and nothing cut from files that are not quite regular."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.pixels.decode import decode
from data_pipeline.pixels.excerpt import cut
from data_pipeline.pixels.jpeg import decode_part
from data_pipeline.pixels.jpeg_frame import read_frame
from tests.support.photographs import encoded, photographs

SIZE = (336, 256)
"""21 x 16 units of 4:2:0."""
BOX = (120, 96, 216, 160)
"""In the middle."""


def marked(blocks: int = 3, **options: object) -> bytes:
    return encoded(photographs(SIZE)[1], quality=90, subsampling=2, restart_marker_blocks=blocks, **options)


DATA = marked()


def test_an_excerpt_is_a_jpeg_of_the_pieces_that_a_box_touches() -> None:
    data = marked()
    excerpt = cut(data, BOX, context=2)
    assert excerpt is not None
    # 118 to 218 lies in pieces of 48 pixels from 96 to 240; 94 to 162 in rows of 16 from 80 to 176.
    assert (excerpt.left, excerpt.top, excerpt.size) == (96, 80, (96, 144))
    assert len(excerpt.data) < len(data) / 4
    whole, part = decode(data, channels=3), decode(excerpt.data, channels=3)
    assert part.shape == (96, 144, 3)
    inner = whole[80:176, 96:240][
        2:-2, 2:-2
    ]  # chroma at a cut lacks its neighbours: that is what the context is for
    np.testing.assert_array_equal(part[2:-2, 2:-2], inner)


def test_a_box_at_the_end_keeps_the_last_incomplete_units() -> None:
    size = (333, 251)
    data = encoded(photographs(size)[1], quality=90, subsampling=2, restart_marker_blocks=3)
    excerpt = cut(data, (300, 230, 333, 251), context=2)
    assert excerpt is not None
    assert (excerpt.left + excerpt.size[1], excerpt.top + excerpt.size[0]) == size
    assert decode(excerpt.data, channels=3).shape == (*excerpt.size, 3)


@pytest.mark.parametrize(
    ("data", "box"),
    [
        (encoded(photographs(SIZE)[1], quality=90), BOX),
        (marked(blocks=4), BOX),  # 21 units are no multiple
        (marked(progressive=True), BOX),
        (marked(), (0, 0, *SIZE)),
        (marked(), (0, 0, 330, 40)),
    ],
    ids=[
        "no markers",
        "other places in each row",
        "progressive",
        "the whole image",
        "all columns of the first rows",
    ],
)
def test_there_is_none_where_nothing_can_be_left_out(data: bytes, box: tuple[int, int, int, int]) -> None:
    assert read_frame(data) is not None
    assert cut(data, box, context=2) is None


def test_a_marker_that_is_missing_or_misnumbered_is_left_to_the_whole_decode() -> None:
    data = marked()
    third = data.index(b"\xff\xd2", read_frame(data).codes_at)
    for damaged in (data[: third + 1] + b"\xd5" + data[third + 2 :], data[:third] + data[third + 2 :]):
        assert cut(damaged, BOX, context=2) is None
        assert decode_part(damaged, SIZE[::-1], BOX, depth=3) is None


@settings(deadline=None, max_examples=300)
@given(
    place=st.integers(0, 1500),
    new=st.binary(min_size=0, max_size=12),
    removed=st.integers(0, 12),
    length=st.integers(0, 1 << 16),
)
def test_bytes_that_are_anything_else_never_raise(place: int, new: bytes, removed: int, length: int) -> None:
    data = (DATA[:place] + new + DATA[place + removed :])[:length]
    excerpt = cut(data, BOX, context=2)
    assert excerpt is None or len(excerpt.data) <= len(data) + 2
