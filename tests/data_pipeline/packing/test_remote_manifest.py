from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.packing.build_plan import Layout
from data_pipeline.packing.corpus import Choice
from data_pipeline.packing.fetch import read_ahead
from data_pipeline.packing.manifest import ManifestOptions, read_manifest
from data_pipeline.packing.pack import build
from data_pipeline.packing.record import Record, Remote
from data_pipeline.packing.shard_writer import Treatment
from tests.support.images import encoded_image
from tests.support.range_server import serve


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "www").mkdir()
    for number in range(6):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        (tmp_path / "www" / f"{number}").write_bytes(encoded_image(number, kind))
    (tmp_path / "www" / "gone.html").write_text("<html>this picture has moved</html>")
    return tmp_path / "www"


def write_manifest(folder: Path, addresses: list[str]) -> Path:
    rows = [f"{address},{place % 2}" for place, address in enumerate(addresses)]
    (folder / "list.csv").write_text("\n".join(["url,label", *rows, ""]))
    return folder / "list.csv"


def test_images_behind_urls_are_packed_in_order_with_suffixes_by_content(
    pictures: Path, tmp_path: Path
) -> None:
    with serve(pictures) as server:
        source = write_manifest(tmp_path, [f"{server.url}/{number}?size=large" for number in range(6)])
        build(source, tmp_path / "out", layout=Layout(shard_size=4))
    members = {}
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}
    suffixes = ("png", "jpg", "webp")
    assert [members[f"{n:06d}.{suffixes[n % 3]}"] for n in range(6)] == [
        (pictures / str(n)).read_bytes() for n in range(6)
    ]
    assert [members[f"{n:06d}.cls"] for n in range(6)] == [b"0", b"1"] * 3


def test_a_url_that_fails_for_good_ends_the_build_by_name(pictures: Path, tmp_path: Path) -> None:
    with serve(pictures) as server:
        source = write_manifest(tmp_path, [f"{server.url}/0", f"{server.url}/nowhere"])
        with pytest.raises(DataError, match=r"/nowhere' cannot be read: .*--skip-missing"):
            build(source, tmp_path / "a")
        source = write_manifest(tmp_path, [f"{server.url}/gone.html"])
        with pytest.raises(DataError, match=r"gone\.html' answers with no JPEG, PNG or WebP .*<html>"):
            build(source, tmp_path / "b")


def test_missing_images_are_left_out_and_listed_where_that_is_allowed(pictures: Path, tmp_path: Path) -> None:
    with serve(pictures) as server:
        names = ["0", "nowhere", "1", "gone.html", "2"]
        source = write_manifest(tmp_path, [*(f"{server.url}/{name}" for name in names), "local.png"])
        built = build(
            source,
            tmp_path / "out",
            choice=Choice(skip_missing=True),
            treatment=Treatment(skip_missing=True),
            layout=Layout(shard_size=2),
        )
    assert (built.num_samples, built.num_shards, len(built.skipped)) == (3, 3, 3)
    listed = [json.loads(line) for line in (tmp_path / "out" / "_skipped.jsonl").read_text().splitlines()]
    assert [entry["name"].rpartition("/")[2] for entry in listed] == ["local.png", "nowhere", "gone.html"]
    assert "No such file" in listed[0]["reason"] and "cannot be read" in listed[1]["reason"]
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == [
            "000000.cls",
            "000000.png",
        ]  # keys are those of the plan, whoever is missing


def test_a_shard_of_which_nothing_is_left_is_no_shard(pictures: Path, tmp_path: Path) -> None:
    choice, treatment = Choice(skip_missing=True), Treatment(skip_missing=True)
    with serve(pictures) as server:
        source = write_manifest(tmp_path, [f"{server.url}/{name}" for name in ("x", "y", "0")])
        build(source, tmp_path / "out", choice=choice, treatment=treatment, layout=Layout(shard_size=2))
        assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["train-000001.tar"]
        source = write_manifest(tmp_path, [f"{server.url}/x"])
        with pytest.raises(DataError, match=r"every one of 1 images is missing or broken; the first: .*/x"):
            build(source, tmp_path / "none", choice=choice, treatment=treatment)


def test_urls_that_cannot_be_opened_are_found_before_anything_is_fetched(tmp_path: Path) -> None:
    source = write_manifest(
        tmp_path, ["gopher://x/a.png", "pipe:cat /etc/passwd#://", "zip://a::http://b/c.png"]
    )
    with pytest.raises(DataError) as caught:
        read_manifest(source, ManifestOptions(skip_missing=True))
    assert "3 of 3 rows" in str(caught.value) and "row 1: 'gopher://x/a.png': Protocol not known" in str(
        caught.value
    )
    assert "never a command or a chain of them" in str(caught.value)


def test_images_are_fetched_side_by_side_and_come_in_order(pictures: Path) -> None:
    with serve(pictures) as server:
        records = [
            Record(name=str(n), image=Remote(f"{server.url}/{n % 6}"), suffix="jpg") for n in range(200)
        ]
        for number, (record, read) in enumerate(read_ahead(records)):
            assert record.name == str(number)
            assert read() == (pictures / str(number % 6)).read_bytes()
            if number == 150:
                break  # a build that stops leaves nobody waiting
        asked = server.num_requests
    assert number == 150 and 150 < asked <= 150 + 64 + 1
