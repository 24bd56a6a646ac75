from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.captions import CaptionReader
from data_pipeline.reindex import index_shards
from tests.support.shards import draw_image, encode, write_tar

IMAGE = encode(draw_image(0))


def captions(folder: Path) -> list[str]:
    index = index_shards(str(folder))
    ids = np.arange(index.num_samples)
    return [text.decode() for text in CaptionReader(index).read(ids)]


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_a_caption_is_found_before_and_behind_its_image_and_never_a_neighbours(
    tmp_path: Path, name: str
) -> None:
    members = [
        ("a.txt", b"before"),
        ("a.png", IMAGE),
        ("b.png", IMAGE),
        ("b.json", b"{}"),
        ("b.txt", "hinter Ä".encode()),
        ("c.json", b"{}"),
        ("c.png", IMAGE),
        ("d.txt", b"d" * 2000),
        ("d.json", b"{}"),
        ("d.png", IMAGE),
        ("sub/d.png", IMAGE),
        ("sub/e.png", IMAGE),
        ("sub/e.txt", b""),
        ("sub/f.png", IMAGE),
    ]
    write_tar(tmp_path / name, members)
    write_tar(tmp_path / f"u{name}", [("a.png", IMAGE), ("a.txt", b"in another shard")])
    assert captions(tmp_path) == ["before", "hinter Ä", "", "d" * 2000, "", "", "", "in another shard"]


def test_names_longer_than_a_header_holds_do_not_hide_a_caption(tmp_path: Path) -> None:
    long = "x" * 180
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=form) as tar:
            for name, content in ((f"{long}1.png", IMAGE), (f"{long}1.txt", b"one"), (f"{long}2.png", IMAGE)):
                path = tmp_path / "member"
                path.write_bytes(content)
                tar.add(path, arcname=name)
    assert captions(tmp_path) == ["one", "", "one", ""]


def test_padding_has_no_caption(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.png", IMAGE), ("a.txt", b"text")])
    assert CaptionReader(index_shards(str(tmp_path))).read(np.array([-1, 0, -1])) == [b"", b"text", b""]
