from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.index import index_shards, open_index
from data_pipeline.reindex import reindex
from tests.support.shards import make_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    make_shards(folder, [4, 3], num_classes=2)
    index_shards(str(folder), classes=("sun", "moon"), split="val")
    return folder


def test_names_and_split_of_the_index_before_are_kept(shards: Path, tmp_path: Path) -> None:
    before = open_index(str(shards))
    for index in (reindex(str(shards)), reindex(str(shards), tmp_path / "else")):
        assert (index.classes, index.split, index.digest) == (("sun", "moon"), "val", before.digest)
    assert (tmp_path / "else" / "_info.json").is_file()


def test_names_and_split_that_are_given_win(shards: Path) -> None:
    index = reindex(str(shards), class_names=("day", "night"), split="test")
    assert (index.classes, index.split) == (("day", "night"), "test")


def test_an_unreadable_index_is_set_aside(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shards / "_info.json").write_text("{")
    assert reindex(str(shards)).classes == ("0", "1")
    assert (shards / "_info.before.json").read_text() == "{"
    assert "_info.json cannot be read: class names, if it has any, are lost" in caplog.text


def test_an_unreadable_index_of_others_stays_where_it_is(shards: Path, tmp_path: Path) -> None:
    (shards / "_info.json").write_text("{")
    assert reindex(str(shards), tmp_path / "else").num_samples == 7
    assert (shards / "_info.json").read_text() == "{"
