"""Remote shards over a real HTTP server: the index of local ones, from a small part of their bytes."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.ranged_file import RangedFile
from data_pipeline.reindex import index_shards
from data_pipeline.scan import scan_content, scan_shard
from tests.support.range_server import RangeServer, serve
from tests.support.shards import make_shards, write_tar

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


def fill(server: RangeServer, name: str, num_samples: int, image_bytes: int, label: str = "cls") -> Path:
    """A tar of samples with images of about this size (which nothing decodes here)."""
    rng = random.Random(0)
    members = []
    for number in range(num_samples):
        image = rng.randbytes(round(image_bytes * rng.uniform(0.8, 1.2)))
        members += [(f"{number:06d}.jpg", image), (f"{number:06d}.{label}", b"%d" % (number % 7))]
    return write_tar(server.folder / name, members)


def test_the_index_of_remote_shards_is_that_of_local_ones(server: RangeServer, tmp_path: Path) -> None:
    local = make_shards(server.folder, [5, 3, 4])
    remote = index_shards(f"{server.url}/", tmp_path / "index")
    assert [shard.url for shard in remote.shards] == [f"{server.url}/{shard.name}" for shard in local.shards]
    assert [shard.num_bytes for shard in remote.shards] == [shard.num_bytes for shard in local.shards]
    assert remote.classes == local.classes
    for number in range(3):
        np.testing.assert_array_equal(remote.rows(number), local.rows(number))
    assert open_index(str(tmp_path / "index")).shards == remote.shards


@pytest.mark.parametrize("pattern", ["test-{000000..000002}.tar", "test-00000{0,1,2}.tar"])
def test_shards_are_named_by_pattern_where_a_server_does_not_list_them(
    server: RangeServer, tmp_path: Path, pattern: str
) -> None:
    make_shards(server.folder, [2, 1, 3])
    assert index_shards(f"{server.url}/{pattern}", tmp_path / "index").num_samples == 6


def test_of_large_images_a_small_fraction_is_fetched(server: RangeServer, tmp_path: Path) -> None:
    path = fill(server, "a.tar", 200, 100_000)
    index = index_shards(f"{server.url}/a.tar", tmp_path / "index")
    assert index.labels().tolist() == [number % 7 for number in range(200)]
    assert server.num_bytes < 0.05 * path.stat().st_size
    assert server.num_requests <= 205


def test_of_small_images_many_headers_come_with_one_request(server: RangeServer, tmp_path: Path) -> None:
    path = fill(server, "a.tar", 2000, 2_000)
    assert index_shards(f"{server.url}/a.tar", tmp_path / "index").num_samples == 2000
    assert server.num_requests < 40
    assert server.num_bytes <= 1.1 * path.stat().st_size


def test_what_is_fetched_at_once_follows_the_members(server: RangeServer) -> None:
    rng = random.Random(0)
    sizes = [1_000] * 500 + [200_000] * 60 + [1_000] * 500
    members = [(f"{number:06d}.jpg", rng.randbytes(size)) for number, size in enumerate(sizes)]
    path = write_tar(server.folder / "a.tar", members)
    file = RangedFile(f"{server.url}/a.tar", path.stat().st_size)
    np.testing.assert_array_equal(scan_content(file, name="a.tar").rows, scan_shard(path, name="a.tar").rows)
    assert (file.num_requests, file.num_bytes) == (server.num_requests, server.num_bytes)
    assert file.num_requests < 100
    assert file.num_bytes < 0.45 * path.stat().st_size


def test_a_remote_digest_says_that_it_covers_headers_and_is_that_of_a_copy(
    server: RangeServer, tmp_path: Path
) -> None:
    path = fill(server, "a.tar", 10, 20_000)
    shard = index_shards(server.url, tmp_path / "index").shards[0]
    assert shard.digest.startswith("headers-") and not shard.is_checked_whole
    assert shard.matches(path)
    fill(server, "b.tar", 10, 20_000, label="txt")
    assert not shard.matches(server.folder / "b.tar")
    path.write_bytes(path.read_bytes()[:-20_000])
    assert not shard.matches(path)
    local = index_shards(str(server.folder / "b.tar"), tmp_path / "other").shards[0]
    assert local.is_checked_whole and local.matches(server.folder / "b.tar") and not local.matches(path)


def test_compressed_shards_come_whole_into_the_cache(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    local = make_shards(server.folder, [4], tar_suffix=".tar.gz")
    remote = index_shards(f"{server.url}/", tmp_path / "index")
    np.testing.assert_array_equal(remote.rows(0), local.rows(0))
    assert remote.shards[0].num_bytes == local.shards[0].num_bytes
    assert "compressed shards have no headers apart, and are fetched whole" in caplog.text


def test_a_truncated_remote_shard_is_named_with_the_byte(server: RangeServer, tmp_path: Path) -> None:
    path = fill(server, "a.tar", 4, 50_000)
    path.write_bytes(path.read_bytes()[:130_000])
    with pytest.raises(
        DataError, match=r"'a.tar' is truncated: '000002.jpg' ends at byte \d+ and the file at 130000"
    ):
        index_shards(f"{server.url}/a.tar", tmp_path / "index")


def test_a_remote_index_needs_a_folder_of_its_own(server: RangeServer) -> None:
    fill(server, "a.tar", 1, 100)
    with pytest.raises(DataError, match=r"nothing is written to remote folders; give --out"):
        index_shards(f"{server.url}/")


def test_a_shard_that_is_not_there_is_named_by_its_url(server: RangeServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{server.url}/none-1.tar"):
        index_shards(f"{server.url}/none-{{1..3}}.tar", tmp_path / "index")
    with pytest.raises(DataError, match="no shards are listed at"):
        index_shards(f"{server.url}/", tmp_path / "index")


def test_pax_sizes_hold_for_remote_shards_too(server: RangeServer, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a.jpg")
    entry.size, entry.pax_headers = 3, {"size": "3"}
    with tarfile.open(server.folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(b"abc"))
    assert index_shards(f"{server.url}/a.tar", tmp_path / "index").rows(0)["size"].tolist() == [3]


def test_the_command_indexes_remote_shards(server: RangeServer, tmp_path: Path) -> None:
    make_shards(server.folder, [5, 3])
    command = [
        sys.executable,
        "-m",
        "data_pipeline",
        "index",
        f"{server.url}/",
        "--out",
        str(tmp_path / "index"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/index: 8 samples, 8 classes, 2 shards\n")
