from __future__ import annotations

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.captions import CaptionReader, refuse_missing_captions
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.inspection.exclude import exclude
from data_pipeline.loader import ShardLoader
from data_pipeline.packing.pack import build
from data_pipeline.reindex import index_shards
from tests.support.loading import configure, take
from tests.support.shards import draw_image, encode, make_shards, write_tar

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


def text_of(number: int) -> str:
    """Of 24 samples in shards of 8 every fifth has none: two in each of the first shards, one in the last."""
    return "" if number % 5 == 0 else f"picture {number}"


@pytest.fixture(scope="module")
def spotty(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("spotty"), [8, 8, 8], captions=text_of)


def test_an_index_knows_how_many_captions_are_missing_and_in_which_shards(spotty: ShardIndex) -> None:
    assert [shard.num_captions for shard in open_index(str(spotty.folder)).shards] == [6, 6, 7]
    message = (
        r"5 of 24 samples of '.*' have no caption .* in 3 of 3 shards: test-000000.tar \(2\), "
        r"test-000001.tar \(2\), test-000002.tar \(1\); data.max_bad_fraction allows 0.2 of them"
    )
    with pytest.raises(DataError, match=message):
        refuse_missing_captions(spotty, max_fraction=0.2)
    refuse_missing_captions(spotty, max_fraction=0.25)


def test_an_index_made_before_captions_were_counted_says_nothing_about_them(
    spotty: ShardIndex, tmp_path: Path
) -> None:
    for file in spotty.folder.iterdir():
        content = re.sub(rb',\s+"captions": \d+', b"", file.read_bytes()) if file.suffix == ".json" else None
        (tmp_path / file.name).write_bytes(file.read_bytes() if content is None else content)
    before = open_index(str(tmp_path))
    assert {shard.num_captions for shard in before.shards} == {None}
    assert before.digest == spotty.digest
    refuse_missing_captions(before, max_fraction=0.0)


def test_what_an_exclusion_leaves_of_a_shard_has_all_captions_or_an_unknown_number(
    spotty: ShardIndex, tmp_path: Path
) -> None:
    left = exclude(spotty, np.array([0, 9]), tmp_path / "left", why=[{}, {}])
    assert [shard.num_captions for shard in left.shards] == [None, None, 7]
    whole = make_shards(tmp_path / "whole", [4], captions=str)
    assert [s.num_captions for s in exclude(whole, np.array([1]), tmp_path / "out", why=[{}]).shards] == [3]


def test_a_build_from_a_manifest_counts_its_captions(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(IMAGE)
    rows = ["path,label,caption", "0.png,a,a shoe", "1.png,a,", '2.png,b,"a shirt, folded"', "3.png,b,a bag"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    build(tmp_path / "list.csv", tmp_path / "out")
    index = open_index(str(tmp_path / "out"))
    assert [shard.num_captions for shard in index.shards] == [3]
    assert index_shards(str(tmp_path / "out")).shards == index.shards


def test_where_text_is_needed_a_sample_without_it_is_replaced_and_counted(spotty: ShardIndex) -> None:
    data = configure(max_bad_fraction=0.25)
    loader = ShardLoader(spotty, data, global_batch=8, seed=1, needs_captions=True)
    batches = take(loader, 3)
    for batch in batches:
        assert batch.captions == tuple(f"picture {number}" for number in batch.sample_ids.tolist())
    assert loader.bad_samples == {"no caption": 5}
    assert {bad.shard for bad in loader.drain_bad()} == {shard.name for shard in spotty.shards}
    strict = configure(max_bad_fraction=0.1)
    with pytest.raises(DataError, match="no caption"):
        take(ShardLoader(spotty, strict, global_batch=8, seed=1, needs_captions=True), 3)


def test_where_a_header_is_damaged_a_sample_has_no_caption_and_the_run_goes_on(tmp_path: Path) -> None:
    members = [
        (f"{i}.{suffix}", text) for i in range(4) for suffix, text in (("png", IMAGE), ("txt", b"word"))
    ]
    write_tar(tmp_path / "t.tar", members)
    index = index_shards(str(tmp_path))
    content = bytearray((tmp_path / "t.tar").read_bytes())
    content[content.index(b"2.txt")] ^= 1  # in its header, whose checksum is then wrong
    (tmp_path / "t.tar").write_bytes(content)
    assert CaptionReader(index).read(np.arange(4)) == [
        b"word",
        b"word",
        b"",
        b"",
    ]  # and the way to the next is lost
    data = configure(train=str(tmp_path), captions=True, max_bad_fraction=0.5)
    loader = ShardLoader(index, data, global_batch=2, seed=0, needs_captions=True)
    assert all(set(batch.captions) == {"word"} for batch in take(loader, 4))
    assert loader.bad_samples == {"no caption": 2}
