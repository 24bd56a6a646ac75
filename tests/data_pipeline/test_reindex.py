from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.packing.corpus import Choice, read_corpus
from data_pipeline.reindex import index_shards
from tests.support.shards import draw_image, encode, make_shards, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    make_shards(folder, [4, 3], num_classes=2)
    index_shards(str(folder), classes=("sun", "moon"), split="val")
    return folder


def test_names_and_split_of_the_index_before_are_kept(shards: Path, tmp_path: Path) -> None:
    before = open_index(str(shards))
    for index in (index_shards(str(shards)), index_shards(str(shards), tmp_path / "else")):
        assert (index.classes, index.split, index.digest) == (("sun", "moon"), "val", before.digest)
    assert (tmp_path / "else" / "_info.json").is_file()


def test_names_and_split_that_are_given_win(shards: Path) -> None:
    index = index_shards(str(shards), classes=("day", "night"), split="test")
    assert (index.classes, index.split) == (("day", "night"), "test")


def test_an_unreadable_index_is_set_aside(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shards / "_info.json").write_text("{")
    assert index_shards(str(shards)).classes == ("0", "1")
    assert (shards / "_info.before.json").read_text() == "{"
    assert "_info.json cannot be read: class names, if it has any, are lost" in caplog.text


def test_an_unreadable_index_of_others_stays_where_it_is(shards: Path, tmp_path: Path) -> None:
    (shards / "_info.json").write_text("{")
    assert index_shards(str(shards), tmp_path / "else").num_samples == 7
    assert (shards / "_info.json").read_text() == "{"


def test_ignored_members_are_counted_over_shards_and_remembered(tmp_path: Path) -> None:
    image = encode(draw_image(0))
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", image), (f"{name}.npy", b""), ("_.pth", b"")])
    assert index_shards(str(tmp_path)).ignored == {"npy": 2, "pth": 2}
    assert open_index(str(tmp_path)).ignored == {"npy": 2, "pth": 2}


def test_some_shards_of_a_folder_are_indexed_by_their_names(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", [1, 2, 4, 8])
    index = index_shards(f"{tmp_path}/shards/test-00000{{1,3}}.tar", tmp_path / "some")
    assert [shard.name for shard in index.shards] == ["test-000001.tar", "test-000003.tar"]
    assert open_index(str(tmp_path / "some")).num_samples == index.num_samples == 10


def test_a_label_of_one_shard_only_is_named(tmp_path: Path) -> None:
    image = encode(draw_image(0))
    write_tar(tmp_path / "a.tar", [("a.png", image)])
    write_tar(tmp_path / "b.tar", [("b.png", image), ("b.cls", b"0")])
    with pytest.raises(
        DataError, match=r"shard 'a.tar' has no labels, while others have; label all shards or none"
    ):
        index_shards(str(tmp_path))


def test_a_number_that_is_no_class_is_named_and_takes_no_memory(tmp_path: Path) -> None:
    image = encode(draw_image(0))
    write_tar(
        tmp_path / "a.tar", [("x.png", image), ("x.cls", b"0"), ("y.png", image), ("y.cls", b"2147483646")]
    )
    says = r"'?a\.tar.*'?y'?: label 2147483646 is above 999999; is it a class"
    with pytest.raises(DataError, match=says):
        index_shards(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.tar/y: label 2147483646 is above 999999; is it a class"):
        read_corpus(tmp_path, Choice())


@pytest.mark.parametrize("content", ["[]", '{"splits": ["a"]}'])
def test_an_index_of_another_form_is_set_aside_too(shards: Path, content: str) -> None:
    (shards / "_info.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_index(str(shards))
    assert index_shards(str(shards)).classes == ("0", "1")
    assert (shards / "_info.before.json").read_text() == content


def test_shards_are_found_at_a_file_address(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", [2])
    index = index_shards(str(tmp_path / "shards"), tmp_path / "else")
    info = tmp_path / "else" / "_info.json"
    content = json.loads(info.read_text())
    content["mirada"]["base"] = f"file://{tmp_path}/shards"
    info.write_text(json.dumps(content))
    assert [shard.url for shard in open_index(str(tmp_path / "else")).shards] == [
        shard.url for shard in index.shards
    ]
