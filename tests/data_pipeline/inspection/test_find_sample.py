from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.__main__ import app
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.inspection.find_sample import find_sample, save_image
from data_pipeline.reindex import index_shards
from tests.support.shards import draw_image, encode, write_tar

IMAGE = encode(draw_image(5, 20, 30))


def make(folder: Path) -> ShardIndex:
    write_tar(folder / "a.tar", [("x/1.cls", b"0"), ("x/1.png", encode(draw_image(1)))])
    files = [("x/2.cls", b"1"), ("x/2.json", b"{}"), ("x/2.png", IMAGE), ("x/2.txt", "ein Bär".encode())]
    write_tar(folder / "b.tar", [("../9.cls", b"0"), ("../9.png", IMAGE), *files])
    return index_shards(str(folder), classes=("ape", "bear"))


def test_a_sample_is_found_with_all_that_its_shard_says(tmp_path: Path) -> None:
    found = find_sample(make(tmp_path), "x/2")
    assert (found.shard, found.sample_id, found.label, found.class_name) == ("b.tar", 2, 1, "bear")
    assert (found.caption, found.state, found.image) == ("ein Bär", "30 x 20, PNG", IMAGE)
    assert list(found.files) == ["cls", "json", "png", "txt"]
    offset, size = found.files["png"]
    assert (tmp_path / "b.tar").read_bytes()[offset : offset + size] == IMAGE


def test_an_unknown_key_is_answered_with_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has the key '7'; keys there look like 'x/1'"):
        find_sample(make(tmp_path), "7")


def test_the_image_is_saved_as_it_is_and_replaces_nothing(tmp_path: Path) -> None:
    found = find_sample(make(tmp_path), "x/2")
    (tmp_path / "out").mkdir()
    assert save_image(found, tmp_path / "out") == tmp_path / "out" / "x" / "2.png"
    assert (tmp_path / "out" / "x" / "2.png").read_bytes() == IMAGE
    with pytest.raises(DataError, match=r"2\.png' is there already"):
        save_image(found, tmp_path / "out")


def test_a_key_that_leaves_the_folder_is_not_saved_under_its_name(tmp_path: Path) -> None:
    found = find_sample(make(tmp_path), "../9")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"key '\.\./9' would leave the folder"):
        save_image(found, tmp_path / "out")
    assert not (tmp_path / "9.png").exists()
    assert save_image(found, tmp_path / "out" / "nine.png").read_bytes() == IMAGE


def test_the_command_prints_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    app(["inspect", str(tmp_path), "--sample", "x/2", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["caption"] == "ein Bär"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "name a folder of indexed shards, or a run"),
        (["X", "--run", "Y", "--step", "1"], "leave DIR out"),
        (["--run", "Y"], "--run and --step belong together"),
        (["X", "--save", "f"], "give that too"),
        (["X", "--recipe", "r.yaml"], "give --sheet FILE.png too"),
        (["X", "--sample", "1", "--sheet", "a.png"], "not for one --sample"),
    ],
)
def test_options_that_contradict_one_another_are_refused(arguments: list[str], advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        app(["inspect", *arguments], standalone_mode=False)
