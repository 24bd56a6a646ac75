from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from data_pipeline.errors import DataError
from data_pipeline.storage.source import ShardFiles, check_size, local_shard, resolve

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compress(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def test_packaged_data_lies_beside_the_code() -> None:
    assert resolve("mirada://sample/train") == str(ROOT / "data_pipeline" / "sample" / "train")
    assert resolve("/somewhere/else") == "/somewhere/else"


def test_packaged_locations_cannot_leave_the_package() -> None:
    with pytest.raises(DataError, match="leaves the package"):
        resolve("mirada://../configs")


def test_a_plain_local_tar_is_used_where_it_lies(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"content")
    assert local_shard(str(tmp_path / "a.tar")) == tmp_path / "a.tar"
    assert not cache.exists()


def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    shard = compress(tmp_path / "a.tar.gz", b"content" * 1000)
    first = local_shard(str(shard))
    assert first.read_bytes() == b"content" * 1000
    unpacked_at = first.stat().st_mtime_ns
    assert local_shard(str(shard)) == first
    assert first.stat().st_mtime_ns == unpacked_at
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".tar"]


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
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_many_processes_asking_at_once_get_one_whole_copy(tmp_path: Path, cache: Path) -> None:
    content = os.urandom(3_000_000)
    shard = compress(tmp_path / "a.tar.gz", content)
    program = (
        "import sys; from data_pipeline.storage.source import local_shard; print(local_shard(sys.argv[1]))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(shard)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for _ in range(4)
    ]
    printed = {process.communicate()[0].strip() for process in processes}
    assert len(printed) == 1
    assert Path(printed.pop()).read_bytes() == content
    assert len(list(cache.glob("*.tar"))) == 1


def test_a_remote_shard_is_fetched_once_through_fsspec(tmp_path: Path) -> None:
    with fsspec.open("memory://corpus/a.tar", "wb") as remote:
        remote.write(b"remote content")
    path = local_shard("memory://corpus/a.tar")
    assert path.read_bytes() == b"remote content"
    assert local_shard("memory://corpus/a.tar") == path


@pytest.mark.parametrize("url", ["pipe:rm -rf /", "zip://a::pipe:ls", "pipe:cat a.tar"])
def test_commands_and_chains_are_refused(url: str) -> None:
    with pytest.raises(DataError, match="is not allowed: a shard is a file or URL"):
        local_shard(url)


@pytest.mark.parametrize("url", ["/nowhere/a.tar", "memory://nowhere/a.tar"])
def test_a_missing_shard_is_named(url: str) -> None:
    with pytest.raises(DataError, match=r"nowhere/a.tar' (does not exist|cannot be reached)"):
        local_shard(url)


def test_reading_gives_bytes_at_an_offset_and_fewer_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(range(100)))
    files = ShardFiles()
    assert files.read(str(tmp_path / "a.tar"), 10, 5) == bytes(range(10, 15))
    assert files.read(str(tmp_path / "a.tar"), 95, 50) == bytes(range(95, 100))
    files.close()


def test_a_shard_that_is_missing_or_cut_is_named_with_what_its_index_says(tmp_path: Path) -> None:
    whole = tmp_path / "a.tar"
    whole.write_bytes(bytes(100))
    check_size(str(whole), 100, name="a.tar")
    with pytest.raises(
        DataError, match=r"shard 'a.tar' has 100 bytes, and its index says 101 bytes: copy it again"
    ):
        check_size(str(whole), 101, name="a.tar")
    with pytest.raises(DataError, match=r"shard 'b.tar' is not at .*b\.tar', and its index says 7 bytes"):
        check_size(str(tmp_path / "b.tar"), 7, name="b.tar")


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
