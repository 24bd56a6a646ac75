from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.reindex import index_shards
from data_pipeline.scan import SAMPLE
from data_pipeline.storage.files import ShardFiles
from tests.support.shards import draw_image, encode, make_shards, write_tar

IMAGE = encode(draw_image(0))


def sample(key: str, label: int | None = 0, suffix: str = "png") -> list[tuple[str, bytes]]:
    members = [(f"{key}.{suffix}", IMAGE)]
    return members if label is None else [*members, (f"{key}.cls", str(label).encode())]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), [4, 7, 3])


def test_an_index_counts_samples_and_knows_their_shards_and_labels(index: ShardIndex) -> None:
    assert index.num_samples == 14
    assert [shard.num_samples for shard in index.shards] == [4, 7, 3]
    assert index.starts.tolist() == [0, 4, 11, 14]
    assert index.labels().tolist() == [number % 10 for number in range(14)]
    assert index.classes == tuple(str(label) for label in range(10))


def test_each_row_points_at_the_bytes_of_its_image(index: ShardIndex) -> None:
    files = ShardFiles()
    shards, rows = index.locate(np.arange(14))
    for number in range(14):
        offset, size, _, image_format = index.rows(int(shards[number]))[int(rows[number])].item()
        assert files.read(index.shards[int(shards[number])].url, offset, size) == encode(draw_image(number))
        assert image_format == 1


def test_reopening_gives_the_same_index_and_digest(index: ShardIndex) -> None:
    again = open_index(str(index.folder))
    assert again.shards == index.shards
    assert again.digest == index.digest
    np.testing.assert_array_equal(again.rows(1), index.rows(1))


def test_the_info_file_is_in_the_form_timm_reads(index: ShardIndex) -> None:
    split = json.loads((index.folder / "_info.json").read_text())["splits"]["train"]
    assert split["num_samples"] == 14
    assert split["filenames"] == [f"test-{number:06d}.tar" for number in range(3)]
    assert split["shard_lengths"] == [4, 7, 3]


def test_samples_agree_with_webdatasets_own_grouping(tmp_path: Path) -> None:
    members = sample("a/0", 3) + [("a/1.txt", b"caption"), *sample("a/1", 4, "jpg"), ("a/1.json", b"{}")]
    write_tar(tmp_path / "t.tar", members + sample("b" * 150, 5, "WEBP"))
    index = index_shards(str(tmp_path))
    theirs = list(webdataset.WebDataset(str(tmp_path / "t.tar"), shardshuffle=False, empty_check=False))
    assert index.num_samples == len(theirs) == 3
    assert index.labels().tolist() == [int(sample["cls"]) for sample in theirs]
    assert index.rows(0)["format"].tolist() == [1, 0, 2]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_tar_format(tmp_path: Path, tar_format: int) -> None:
    names = [f"{'folder/' * 14}{number}" for number in range(3)]
    with tarfile.open(tmp_path / "t.tar", "w", format=tar_format) as tar:
        for name in names:
            entry = tarfile.TarInfo(f"{name}.png")
            tar.addfile(entry)
    assert index_shards(str(tmp_path)).num_samples == 3


def test_compressed_shards_have_the_rows_of_uncompressed_ones(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    compressed = make_shards(tmp_path / "shards", [4, 7, 3], tar_suffix=".tar.gz")
    for shard in range(3):
        np.testing.assert_array_equal(compressed.rows(shard), index.rows(shard))
    assert compressed.digest != index.digest


def test_an_index_elsewhere_leaves_the_shards_folder_untouched(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "t.tar", sample("a") + sample("b"))
    index = index_shards(str(tmp_path / "shards"), tmp_path / "index")
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["t.tar"]
    assert open_index(str(tmp_path / "index")).shards[0].url == str(tmp_path / "shards" / "t.tar")
    assert index.num_samples == 2


def test_a_moved_folder_keeps_its_digest(tmp_path: Path) -> None:
    digest = make_shards(tmp_path / "here", [3]).digest
    (tmp_path / "here").rename(tmp_path / "there")
    moved = open_index(str(tmp_path / "there"))
    assert moved.digest == digest
    assert Path(moved.shards[0].url).is_file()


def test_classes_of_an_index_survive_indexing_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", sample("a", 1))
    index_shards(str(tmp_path), classes=("cat", "dog"))
    assert index_shards(str(tmp_path)).classes == ("cat", "dog")


def test_images_without_labels_are_indexed_without_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", sample("a", None) + sample("b", None))
    index = index_shards(str(tmp_path))
    assert index.labels().tolist() == [-1, -1]
    assert index.classes == ()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "t.tar' holds no samples"),
        (sample("a") + sample("b") + [("a.txt", b"late")], "key 'a' occurs twice, not side by side"),
        ([*sample("a"), ("a.png", IMAGE)], "key 'a' has two files of one suffix"),
        (sample("a") + sample("b", None), "key 'b' has no .cls, while others have one"),
        (
            sample("a") + [("b.txt", b"caption"), ("b.cls", b"1")],
            r"key 'b' has no image \(it has \['cls', 'txt'\]\)",
        ),
        ([("a.png", IMAGE), ("a.cls", b"cat")], "key 'a': .cls holds b'cat'; write a class number"),
    ],
)
def test_a_shard_out_of_order_is_named_with_the_key(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DataError, match=message):
        index_shards(str(tmp_path))
    assert not (tmp_path / "_info.json").exists()


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("extra", [0, 100])
def test_a_tar_cut_anywhere_is_an_error_even_between_members(tmp_path: Path, blocks: int, extra: int) -> None:
    path = write_tar(tmp_path / "t.tar", sample("a") + sample("b"))
    # Two samples of two members with a header and contents of 2 and 1 blocks: the end marker begins after block 10.
    path.write_bytes(path.read_bytes()[: blocks * 512 * 2 + extra])
    with pytest.raises(DataError, match=r"t.tar' is (truncated|empty)"):
        index_shards(str(tmp_path))


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", sample("a"))
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no tar, or damaged at byte 0"):
        index_shards(str(tmp_path))


def test_a_label_outside_the_class_map_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", sample("a", 2))
    with pytest.raises(
        DataError, match=r"'t.tar': key '.+' has label 2, but the class map has only 2 classes"
    ):
        index_shards(str(tmp_path), classes=("cat", "dog"))


def test_a_folder_without_index_says_which_command_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no index in .*; make it with: mirada data index {tmp_path}"):
        open_index(str(tmp_path))


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards in .*: expected files ending in .tar"):
        index_shards(str(tmp_path))
    with pytest.raises(DataError, match="is not a folder"):
        index_shards(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda info: info["mirada"].update(version=99),
        lambda info: info.pop("mirada"),
        lambda info: info["splits"]["train"]["filenames"].__setitem__(0, "../../etc/passwd"),
        lambda info: info["splits"]["train"]["shard_lengths"].pop(),
    ],
)
def test_a_damaged_index_is_an_error_that_says_how_to_make_it_again(tmp_path: Path, damage: object) -> None:
    make_shards(tmp_path, [2])
    info = json.loads((tmp_path / "_info.json").read_text())
    damage(info)  # type: ignore[operator]
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"cannot be read .*; make it again with: mirada data index"):
        open_index(str(tmp_path))


def test_rows_that_do_not_belong_to_the_index_are_an_error(tmp_path: Path) -> None:
    index = make_shards(tmp_path, [3])
    np.save(tmp_path / "test-000000.tar.index.npy", np.zeros(2, SAMPLE))
    with pytest.raises(DataError, match="of another kind or number; make the index again"):
        index.rows(0)
