from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.__main__ import app
from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.inspection import hashing
from data_pipeline.inspection.duplicates import Duplicates, find_duplicates
from data_pipeline.inspection.hashing import NO_HASH, hash_images, perceptual_hash
from data_pipeline.inspection.verify import verify
from data_pipeline.reindex import index_shards
from tests.support.shards import encode, write_tar


def photograph(number: int, height: int = 150, width: int = 200) -> np.ndarray:
    """Soft shapes and light, unlike those of any other number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def make(folder: Path, images: dict[str, bytes], per_shard: int = 4) -> Path:
    members = list(images.items())
    for start in range(0, len(members), per_shard):
        files = []
        for key, image in members[start : start + per_shard]:
            files += [(f"{key}.cls", b"0"), (f"{key}.jpg", image)]
        write_tar(folder / f"s-{start:03d}.tar", files)
    index_shards(str(folder), classes=("thing",))
    return folder


def both(tmp_path: Path) -> tuple[Path, Path]:
    """Nine training images, of which three stand in the evaluation set too: again, halved, and slightly cut."""
    train = make(tmp_path / "train", {f"t{n}": encode(photograph(n), "jpg") for n in range(9)})
    halved = cv2.resize(photograph(4), (100, 75), interpolation=cv2.INTER_AREA)
    evaluation = {
        "e0": encode(photograph(2), "jpg"),
        "e1": encode(halved, "jpg"),
        "e2": encode(photograph(8)[1:149, 1:199], "jpg"),
        **{f"e{n}": encode(photograph(n), "jpg") for n in range(20, 25)},
    }
    return train, make(tmp_path / "val", evaluation)


def find(train: Path, val: Path) -> Duplicates:
    return find_duplicates(open_index(str(train)), open_index(str(val)), radius=8, difference=0.02)


def test_images_that_were_saved_again_halved_or_slightly_cut_are_found_and_no_others(tmp_path: Path) -> None:
    found = find(*both(tmp_path)).found
    assert [(pair.sample.key, pair.other.key) for pair in found] == [("t2", "e0"), ("t4", "e1"), ("t8", "e2")]
    assert [pair.sample.shard for pair in found] == ["s-000.tar", "s-004.tar", "s-008.tar"]
    assert found[0].distance == 0 and found[0].difference == 0.0


def test_a_similar_hash_alone_is_no_duplicate(tmp_path: Path) -> None:
    blotched = photograph(1).copy()
    blotched[60:80, 80:110] = 0
    train = make(tmp_path / "train", {"a": encode(photograph(1), "jpg"), "b": encode(photograph(3), "jpg")})
    val = make(tmp_path / "val", {"c": encode(blotched, "jpg")})
    result = find_duplicates(open_index(str(train)), open_index(str(val)), radius=16, difference=0.02)
    assert (result.num_proposed, result.found) == (1, ())


def test_blank_and_damaged_images_are_not_taken_for_one_another(tmp_path: Path) -> None:
    blank = encode(np.full((40, 40), 200, np.uint8), "jpg")
    assert perceptual_hash(blank) == perceptual_hash(b"no image") == NO_HASH
    train = make(tmp_path / "train", {"a": blank, "b": b"\xff\xd8\xff broken"})
    result = find(train, make(tmp_path / "val", {"c": blank}))
    assert (result.found, result.num_without_hash, result.num_others_without_hash) == ((), 2, 1)


def test_of_images_that_occur_often_each_is_listed_once(tmp_path: Path) -> None:
    image = encode(photograph(1), "jpg")
    train = make(tmp_path / "train", {f"t{n}": image for n in range(7)})
    found = find(train, make(tmp_path / "val", {f"e{n}": image for n in range(5)})).found
    assert [pair.sample.sample_id for pair in found] == list(range(7))


def test_hashes_are_kept_beside_the_index_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "train", {f"t{n}": encode(photograph(n), "jpg") for n in range(9)})
    first = hash_images(open_index(str(folder)))
    assert (folder / "s-004.tar.phash.npy").is_file()
    write_tar(folder / "s-004.tar", [("new.cls", b"0"), ("new.jpg", encode(photograph(50), "jpg"))])
    hashed: list[bytes] = []

    def counted(encoded: bytes) -> int:
        hashed.append(encoded)
        return perceptual_hash(encoded)

    monkeypatch.setattr(hashing, "perceptual_hash", counted)
    again = hash_images(index_shards(str(folder)))
    assert len(hashed) == 1  # the others were read from their files
    np.testing.assert_array_equal(again, [*first[:4], perceptual_hash(hashed[0]), first[8]])


def test_excluded_images_are_left_out_of_a_new_index_and_the_tars_stay(tmp_path: Path) -> None:
    train, val = both(tmp_path)
    before = {file.name: file.read_bytes() for file in train.glob("*.tar")}
    out = tmp_path / "without"
    assert run("duplicates", str(train), "--against", str(val), "--exclude", str(out)) == 0
    made = open_index(str(out))
    assert made.num_samples == 6
    assert [shard.name for shard in made.shards] == ["s-000.tar", "s-004.tar"]  # of the third nothing is left
    assert find(out, val).found == ()
    assert verify(str(out), deep=True).faults == ()
    assert {file.name: file.read_bytes() for file in train.glob("*.tar")} == before
    named = [(s["shard"], s["key"]) for s in json.loads((out / "excluded.json").read_text())["samples"]]
    assert named == [("s-000.tar", "t2"), ("s-004.tar", "t4"), ("s-008.tar", "t8")]


def test_a_fault_of_a_shard_is_still_found_where_images_are_left_out(tmp_path: Path) -> None:
    train, val = both(tmp_path)
    run("duplicates", str(train), "--against", str(val), "--exclude", str(tmp_path / "without"))
    content = bytearray((train / "s-000.tar").read_bytes())
    content[600] ^= 1
    (train / "s-000.tar").write_bytes(content)
    assert {fault.shard for fault in verify(str(tmp_path / "without")).faults} == {"s-000.tar"}


def test_an_index_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    train, val = both(tmp_path)
    with pytest.raises(DataError, match="has an index already; name a new folder"):
        run("duplicates", str(train), "--against", str(val), "--exclude", str(val))


def test_the_command_lists_pairs_draws_them_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = both(tmp_path)
    sheet = tmp_path / "pairs.png"
    assert run("duplicates", str(train), "--against", str(val), "--sheet", str(sheet)) == 1
    assert "3 images in both" in capsys.readouterr().out
    assert cv2.imread(str(sheet)).shape == (2 * (18 + 96 + 4), 10 * 100 - 4, 3)
    assert run("duplicates", str(train), "--against", str(val), "--json") == 1
    assert [pair["sample"]["key"] for pair in json.loads(capsys.readouterr().out)["found"]] == [
        "t2",
        "t4",
        "t8",
    ]
    other = make(tmp_path / "other", {"z": encode(photograph(99), "jpg")})
    assert run("duplicates", str(train), "--against", str(other)) == 0


def run(*arguments: str) -> int:
    """`mirada data ...` in this process; its exit code."""
    sys.stdout.flush()
    code = app(list(arguments), standalone_mode=False)
    return int(code or 0)
