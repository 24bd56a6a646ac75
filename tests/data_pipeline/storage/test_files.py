from __future__ import annotations

import gzip
import os
import pickle
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shard import Shard
from data_pipeline.storage.cache import ShardCache
from data_pipeline.storage.files import ShardFiles, local_shard


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compress(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def test_a_plain_local_tar_is_used_where_it_lies(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"content")
    assert local_shard(str(tmp_path / "a.tar")) == tmp_path / "a.tar"
    assert not cache.exists()


def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    shard = compress(tmp_path / "a.tar.gz", b"content" * 1000)
    first = local_shard(str(shard))
    assert first.read_bytes() == b"content" * 1000
    unpacked = first.stat().st_ino
    assert local_shard(str(shard)) == first
    assert first.stat().st_ino == unpacked
    assert sorted(cache.iterdir()) == [cache / ".lock", first]


def test_a_shard_that_changed_is_unpacked_again(tmp_path: Path) -> None:
    first = local_shard(str(compress(tmp_path / "a.tar.gz", b"old")))
    second = local_shard(str(compress(tmp_path / "a.tar.gz", b"newer")))
    assert first != second
    assert second.read_bytes() == b"newer"


def test_shards_of_one_name_in_two_folders_do_not_collide(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        compress(tmp_path / name / "a.tar.gz", name.encode())
    for name in ("one", "two"):
        assert local_shard(str(tmp_path / name / "a.tar.gz")).read_bytes() == name.encode()


def test_a_truncated_archive_is_an_error_and_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    shard = compress(tmp_path / "a.tar.gz", os.urandom(10_000))
    shard.write_bytes(shard.read_bytes()[:5_000])
    with pytest.raises(DataError, match=r"a.tar.gz' is truncated or damaged"):
        local_shard(str(shard))
    assert not [path for path in cache.iterdir() if path.name != ".lock"]


def test_a_remote_shard_is_fetched_once_through_fsspec(tmp_path: Path) -> None:
    with fsspec.open("memory://corpus/a.tar", "wb") as remote:
        remote.write(b"remote content")
    path = local_shard("memory://corpus/a.tar")
    assert path.read_bytes() == b"remote content"
    assert local_shard("memory://corpus/a.tar") == path


@pytest.mark.parametrize("url", ["/nowhere/a.tar", "memory://nowhere/a.tar"])
def test_a_missing_shard_is_named(url: str) -> None:
    with pytest.raises(DataError, match=r"nowhere/a.tar' (does not exist|cannot be read: FileNotFoundError)"):
        local_shard(url)


def test_reading_gives_bytes_at_an_offset_and_fewer_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(range(100)))
    files = ShardFiles()
    assert files.read(str(tmp_path / "a.tar"), 10, 5) == bytes(range(10, 15))
    assert files.read(str(tmp_path / "a.tar"), 95, 50) == bytes(range(95, 100))
    files.close()


def test_more_shards_than_may_be_open_are_all_readable(tmp_path: Path) -> None:
    files = ShardFiles()
    num_open_before = len(os.listdir("/proc/self/fd"))
    paths = [tmp_path / f"{number}.tar" for number in range(300)]
    for number, path in enumerate(paths):
        path.write_bytes(number.to_bytes(4, "little"))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert int.from_bytes(files.read(str(path), 0, 4), "little") == number
    assert len(os.listdir("/proc/self/fd")) - num_open_before < 300
    files.close()


def test_an_index_says_what_a_shard_must_be_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100))
    right = Shard(name="a.tar", url=str(tmp_path / "a.tar"), num_samples=1, num_bytes=100, digest="")
    assert ShardFiles([right]).read(right.url, 98, 10) == bytes(2)
    assert ShardFiles([right]).size(right.url) == 100
    with pytest.raises(DataError, match=r"shard 'a.tar' has 100 bytes, and its index says 99 bytes"):
        ShardFiles([replace(right, num_bytes=99)]).read(right.url, 0, 10)


def test_more_copies_than_fit_the_cache_are_all_readable_and_it_keeps_its_bound(
    tmp_path: Path, cache: Path
) -> None:
    shards = [str(compress(tmp_path / f"{number}.tar.gz", bytes([number]) * 1000)) for number in range(8)]
    files = ShardFiles(cache=ShardCache(max_bytes=3500))
    for number in [*range(8), *range(8), 0, 7, 0, 7, 7]:
        assert files.read(shards[number], 999, 5) == bytes([number])
        assert files.size(shards[number]) == 1000
        assert sum(path.stat().st_size for path in cache.iterdir()) <= 3500
    files.close()


def test_open_files_do_not_travel_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"content")
    files = ShardFiles()
    files.read(str(tmp_path / "a.tar"), 0, 7)
    arrived = pickle.loads(pickle.dumps(files))
    assert arrived.read(str(tmp_path / "a.tar"), 3, 4) == b"tent"
