"""Tars that somebody else made, packed anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.packing.build_plan import Layout
from data_pipeline.packing.corpus import Choice
from data_pipeline.packing.pack import build
from tests.support.images import make_image_folder
from tests.support.packed import samples_of
from tests.support.shards import draw_image, encode, make_shards, write_tar


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "source", per_class=8)


def test_existing_tars_are_packed_anew_with_their_keys_and_texts(tmp_path: Path) -> None:
    images = [encode(draw_image(number)) for number in range(7)]
    for shard, numbers in enumerate(([0, 1, 2], [3, 4, 5, 6])):
        members = []
        for number in numbers:
            key = f"album/{number}"
            members += [
                (f"{key}.png", images[number]),
                (f"{key}.cls", b"%d" % (number % 3)),
                (f"{key}.txt", b"t%d" % number),
            ]
        write_tar(tmp_path / "in" / f"x-{shard}.tar{'.gz' * shard}", members)
    build(tmp_path / "in", tmp_path / "out", layout=Layout(shard_size=5))
    samples = samples_of(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == [f"album/{number}" for number in range(7)]
    assert [sample["png"] for sample in samples] == images
    assert [(sample["cls"], sample["txt"]) for sample in samples] == [
        (b"%d" % (n % 3), b"t%d" % n) for n in range(7)
    ]


def test_tars_that_share_a_key_are_not_packed_together(tmp_path: Path) -> None:
    make_shards(tmp_path / "in", [2])
    (tmp_path / "in" / "test-000001.tar").write_bytes((tmp_path / "in" / "test-000000.tar").read_bytes())
    with pytest.raises(
        DataError, match=r"key '000000' stands in .*test-000000\.tar and in .*test-000001\.tar"
    ):
        build(tmp_path / "in", tmp_path / "out")


def test_classes_of_indexed_tars_keep_their_names(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "first")
    build(tmp_path / "first", tmp_path / "second", choice=Choice(class_names=("eel", "dog")))
    index = open_index(str(tmp_path / "second"))
    assert (index.classes, sorted(index.labels())) == (("eel", "dog"), [0] * 8 + [1] * 8)


@pytest.mark.parametrize("key", ["../evil", "/etc/evil", "a/../../evil", "a\\evil", "a\nb"])
def test_keys_that_would_leave_a_folder_are_refused(tmp_path: Path, key: str) -> None:
    write_tar(tmp_path / "in.tar", [(f"{key}.png", encode(draw_image(1)))])
    with pytest.raises(DataError, match=r"in\.tar.*key .* outside of|no file name"):
        build(tmp_path / "in.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()
