from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.packing.build_plan import Layout
from data_pipeline.packing.corpus import Choice
from data_pipeline.packing.pack import build, build_splits
from data_pipeline.packing.splits import parse_splits, read_splits
from tests.support.images import encoded_image, make_image_folder
from tests.support.shards import make_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_image_folder(tmp_path / "in" / "train", classes=("ant", "cat"), per_class=3)
    make_image_folder(tmp_path / "in" / "val", classes=("ant", "bee"), per_class=2)
    return tmp_path / "in"


def write_manifest(folder: Path, rows: list[str], header: str = "path,label,split") -> Path:
    for name in "abc":
        (folder / f"{name}.png").write_bytes(encoded_image(ord(name)))
    (folder / "list.csv").write_text("\n".join([header, *rows, ""]))
    return folder / "list.csv"


def test_folders_become_splits_that_share_their_classes(folder: Path, tmp_path: Path) -> None:
    built = build_splits(folder, tmp_path / "out", None, layout=Layout(shard_size=4))
    assert [(name, part.num_samples, part.num_shards) for name, part in built.items()] == [
        ("train", 6, 2),
        ("val", 4, 1),
    ]
    train, val = (open_index(str(tmp_path / "out" / name)) for name in ("train", "val"))
    assert train.classes == val.classes == ("ant", "bee", "cat")
    assert (sorted(train.labels()), sorted(val.labels())) == ([0, 0, 0, 2, 2, 2], [0, 0, 1, 1])
    assert (val.split, val.shards[0].name) == ("val", "val-000000.tar")


def test_a_split_alone_has_only_its_own_classes(folder: Path) -> None:
    assert read_splits(folder, ("val",), Choice())["val"].classes == ("ant", "bee")


def test_a_class_may_be_empty_in_one_split_but_not_in_all(folder: Path) -> None:
    (folder / "val" / "cat").mkdir()
    assert read_splits(folder, None, Choice())["val"].classes == ("ant", "bee", "cat")
    for name in ("train", "val"):
        (folder / name / "yak").mkdir()
    with pytest.raises(DataError, match=r"1 class folder\(s\) without an image in any split: 'yak'"):
        read_splits(folder, None, Choice())


def test_the_class_map_of_a_file_holds_for_all_splits_and_limits_for_each(folder: Path) -> None:
    corpora = read_splits(folder, None, Choice(class_names=("ant",), limit=2))
    assert [(corpus.classes, len(corpus.records)) for corpus in corpora.values()] == [(("ant",), 2)] * 2


def test_a_column_divides_a_manifest(tmp_path: Path) -> None:
    source = write_manifest(tmp_path, ["a.png,x,val", "b.png,y,train", "c.png,x,train"])
    corpora = read_splits(source, None, Choice())
    assert {name: [record.name for record in corpus.records] for name, corpus in corpora.items()} == {
        "train": ["b.png", "c.png"],
        "val": ["a.png"],
    }
    assert corpora["val"].classes == ("x", "y")
    assert [record.fields for record in corpora["train"].records] == [None, None]


def test_rows_of_several_splits_are_mixed_only_on_demand(tmp_path: Path) -> None:
    source = write_manifest(tmp_path, ["a.png,x,val", "b.png,y,train"])
    with pytest.raises(DataError, match=r"column 'split' has 'train', 'val': .*--splits all.*--splits none"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert build(source, tmp_path / "out", choice=Choice(together=True)).num_samples == 2


def test_tars_in_folders_are_splits_too(tmp_path: Path) -> None:
    make_shards(tmp_path / "in" / "train", [12])
    make_shards(tmp_path / "in" / "val", [3])
    corpora = read_splits(tmp_path / "in", ("train", "val"), Choice())
    assert [len(corpus.classes) for corpus in corpora.values()] == [10, 10]


def test_what_is_wrong_with_splits_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder 'test' for --splits; there are: train, val"):
        read_splits(folder, ("train", "test"), Choice())
    with pytest.raises(DataError, match=r"look like splits, not classes: pack each apart with --splits all"):
        build(folder, tmp_path / "out")
    source = write_manifest(tmp_path, ["a.png,x,val", "b.png,y,"])
    with pytest.raises(DataError, match=r"1 rows have no split \(the first: row 2\)"):
        read_splits(source, None, Choice())
    source = write_manifest(tmp_path, ["a.png,x,my/val"])
    with pytest.raises(DataError, match=r"split 'my/val': letters, digits"):
        read_splits(source, None, Choice())
    with pytest.raises(DataError, match=r"no row has the split 'train'; there are my/val"):
        read_splits(source, ("train",), Choice())
    with pytest.raises(DataError, match=r"no column 'split' among .*, which --splits needs"):
        read_splits(write_manifest(tmp_path, ["a.png,x"], "path,label"), None, Choice())
    with pytest.raises(DataError, match=r"'train,train': names with commas"):
        parse_splits("train,train")
    assert (parse_splits("all"), parse_splits("a, b")) == (None, ("a", "b"))
