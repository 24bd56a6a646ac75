"""Manifests: which images they name, with which labels and captions, and what becomes of their further columns."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline.errors import DataError
from data_pipeline.packing.corpus import Choice
from data_pipeline.packing.manifest import ManifestOptions, read_manifest
from data_pipeline.packing.pack import build
from tests.support.images import encoded_image
from tests.support.packed import samples_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        (tmp_path / "pictures" / f"{name}.png").write_bytes(encoded_image(ord(name)))
    return tmp_path


def write_csv(folder: Path, text: str) -> Path:
    file = folder / "list.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_paths_count_from_the_manifest_and_rows_keep_their_order(folder: Path) -> None:
    file = write_csv(folder, "label,path\nzebra,pictures/b.png\nape,pictures/a.png\n")
    records = read_manifest(file).records
    assert [record.name for record in records] == ["pictures/b.png", "pictures/a.png"]
    assert records[0].image.read() == (folder / "pictures/b.png").read_bytes()


def test_names_are_numbered_in_sorted_order(folder: Path) -> None:
    file = write_csv(folder, "path,label\npictures/b.png,zebra\npictures/a.png,ape\npictures/c.png,zebra\n")
    corpus = read_manifest(file)
    assert corpus.classes == ("ape", "zebra")
    assert [record.label for record in corpus.records] == [1, 0, 1]


def test_integer_labels_stay_even_where_some_do_not_occur(folder: Path) -> None:
    corpus = read_manifest(write_csv(folder, "path,label\npictures/b.png,7\npictures/a.png,2\n"))
    assert [record.label for record in corpus.records] == [7, 2]
    assert corpus.classes == tuple("01234567")


def test_numbers_with_leading_zeros_are_names(folder: Path) -> None:
    corpus = read_manifest(write_csv(folder, "path,label\npictures/b.png,01\npictures/a.png,1\n"))
    assert corpus.classes == ("01", "1")


def test_captions_with_commas_quotes_and_line_breaks_arrive_whole(folder: Path) -> None:
    text = 'path,label,caption\npictures/a.png,0,"a ""cat"",\nasleep — là"\npictures/b.png,0,\n'
    captions = [record.caption for record in read_manifest(write_csv(folder, text)).records]
    assert captions == ['a "cat",\nasleep — là', None]


def test_parquet_is_read_like_csv(folder: Path) -> None:
    table = pa.table(
        {
            "score": [0.5, 0.25],
            "path": ["pictures/c.png", "pictures/a.png"],
            "label": pa.array(["x", "w"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    corpus = read_manifest(folder / "list.parquet")
    assert [(record.name, record.label) for record in corpus.records] == [
        ("pictures/c.png", 1),
        ("pictures/a.png", 0),
    ]


def test_integer_columns_of_parquet_stay(folder: Path) -> None:
    table = pa.table({"path": ["pictures/c.png"], "label": pa.array([3], pa.int16())})
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    assert [record.label for record in read_manifest(folder / "list.parquet").records] == [3]


def test_labels_may_be_missing_only_when_asked_for(folder: Path) -> None:
    file = write_csv(folder, "path\npictures/a.png\n")
    with pytest.raises(DataError, match=r"no column 'label' among \['path'\].*--unlabelled"):
        read_manifest(file)
    corpus = read_manifest(file, ManifestOptions(unlabelled=True))
    assert (corpus.classes, corpus.records[0].label) == ((), -1)


def test_every_wrong_row_is_counted_and_the_first_are_named(folder: Path) -> None:
    rows = "pictures/a.png,0\npictures/gone.png,0\npictures/a.gif,0\n,0\n"
    with pytest.raises(DataError, match=r"3 of 4 rows") as caught:
        read_manifest(write_csv(folder, "path,label\n" + rows))
    assert "row 2: 'pictures/gone.png': No such file" in str(caught.value)
    assert "row 3: 'pictures/a.gif' is not the path of a .jpg" in str(caught.value)
    assert "row 4: None" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,0\n", r"no column 'path' among \['file', 'label'\]"),
        ("path,label\n", "no rows"),
        ("path,label\npictures/a.png,\n", r"1 of 1 rows have no label \(the first: row 1\)"),
        ("path,label\npictures/a.png,9999999999\n", "label 9999999999 is above 999999"),
        ("path,label\npictures/a.png,1,2,3\n", "not readable as csv"),
        ("", "not readable as csv"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_manifest(write_csv(folder, text))


def test_a_parquet_file_that_is_none_is_named(folder: Path) -> None:
    (folder / "list.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match=r"list\.parquet: not readable as parquet"):
        read_manifest(folder / "list.parquet")


def test_numbers_and_names_are_not_mixed_by_accident(folder: Path) -> None:
    file = write_csv(folder, "path,label\npictures/a.png,7\npictures/b.png,cat\n")
    with pytest.raises(
        DataError, match=r"partly numbers \(row 1: '7'\) and partly names \(row 2: 'cat'\).*--classes"
    ):
        read_manifest(file)
    assert read_manifest(file, ManifestOptions(labels_are_names=True)).classes == ("7", "cat")


def test_labels_below_zero_and_fractions_are_no_classes(folder: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 has the label -1: classes are numbered from 0 on"):
        read_manifest(write_csv(folder, "path,label\npictures/a.png,1\npictures/b.png,-1\n"))
    table = pa.table({"path": ["pictures/c.png", "pictures/a.png"], "label": [0.5, 1.0]})
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    with pytest.raises(DataError, match="'label' holds fractions"):
        read_manifest(folder / "list.parquet")


def test_whole_numbers_that_a_table_keeps_as_fractions_are_labels(folder: Path) -> None:
    table = pa.table({"path": ["pictures/c.png", "pictures/a.png"], "label": [2.0, 0.0]})
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    assert [record.label for record in read_manifest(folder / "list.parquet").records] == [2, 0]


def test_columns_that_fit_no_json_or_stand_twice_are_named(folder: Path) -> None:
    table = pa.table({"path": ["pictures/c.png"], "thumbnail": [b"raw"], "label": [0]})
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    with pytest.raises(DataError, match=r"column 'thumbnail' holds binary, which no JSON text can"):
        read_manifest(folder / "list.parquet")
    assert read_manifest(folder / "list.parquet", ManifestOptions(columns=())).records[0].fields is None
    with pytest.raises(
        DataError, match=r"--columns names 'x', and there are \['path', 'thumbnail', 'label'\]"
    ):
        read_manifest(folder / "list.parquet", ManifestOptions(columns=("x",)))
    with pytest.raises(DataError, match=r"column 'path' stands there 2 times"):
        read_manifest(write_csv(folder, "path,path,label\na,b,0\n"))


def test_a_table_saved_by_a_spreadsheet_is_read(folder: Path) -> None:
    file = folder / "list.csv"
    file.write_bytes("\ufeffpath,label\r\npictures/a.png,Ω\r\n".encode())
    assert read_manifest(file).classes == ("Ω",)


def test_further_columns_become_json_with_their_types(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(1))
    columns = {
        "path": ["a.png", "a.png"],
        "score": [0.5, float("nan")],
        "width": pa.array([7, None], pa.int16()),
        "sharp": [True, False],
        "taken": [datetime.datetime(2024, 5, 1, 12), None],
        "tags": [["ä", "b"], []],
        "camera": [{"name": "x", "iso": 100}, None],
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    build(tmp_path / "list.parquet", tmp_path / "out", choice=Choice(unlabelled=True))
    assert [json.loads(sample["json"]) for sample in samples_of(tmp_path / "out")] == [
        {
            "score": 0.5,
            "width": 7,
            "sharp": True,
            "taken": "2024-05-01T12:00:00",
            "tags": ["ä", "b"],
            "camera": {"name": "x", "iso": 100},
        },
        {"score": None, "width": None, "sharp": False, "taken": None, "tags": [], "camera": None},
    ]


def test_further_columns_of_csv_stay_text_and_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(1))
    (tmp_path / "list.csv").write_text("path,label,id,note\na.png,0,007,\n")
    for columns, expected in ((None, {"id": "007", "note": None}), (("id",), {"id": "007"})):
        build(tmp_path / "list.csv", tmp_path / f"out{columns}", choice=Choice(columns=columns))
        assert json.loads(samples_of(tmp_path / f"out{columns}")[0]["json"]) == expected
    build(tmp_path / "list.csv", tmp_path / "none", choice=Choice(columns=()))
    assert "json" not in samples_of(tmp_path / "none")[0]


def test_captions_become_text_members(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(1))
    table = pa.table({"path": ["a.png", "a.png"], "label": ["x", "y"], "caption": ["a réd fish", None]})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    build(tmp_path / "list.parquet", tmp_path / "out")
    assert [sample.get("txt") for sample in samples_of(tmp_path / "out")] == ["a réd fish".encode(), None]


def write_parquet(folder: Path, captions: list[object]) -> Path:
    file = folder / "list.parquet"
    paths = [f"pictures/{name}.png" for name in "abc"]
    pyarrow.parquet.write_table(pa.table({"path": paths, "label": [0, 1, 0], "caption": captions}), file)
    return file


def test_a_column_of_lists_where_text_is_wanted_is_said_so(folder: Path) -> None:
    file = write_parquet(folder, [["one", "two"], ["three"], []])
    with pytest.raises(DataError, match=r"list\.parquet: not readable as parquet: .*list"):
        read_manifest(file)


def test_a_damaged_parquet_file_is_said_so(folder: Path) -> None:
    file = write_parquet(folder, ["a", "b", "c"])
    content = bytearray(file.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content[footer : footer + 20] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"list\.parquet: not readable as parquet: "):
        read_manifest(file)


def test_a_folder_by_the_name_of_an_image_is_none(folder: Path) -> None:
    (folder / "pictures" / "d.png").mkdir()
    with pytest.raises(DataError, match=r"d\.png' is a folder or device, and no image"):
        read_manifest(write_csv(folder, "path,label\npictures/a.png,0\npictures/d.png,1\n"))
