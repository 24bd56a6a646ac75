from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.shard import Shard
from data_pipeline.storage import room
from data_pipeline.storage.cache import ShardCache
from tests.support.nginx import NginxServer, missing_for_nginx, nginx_server, wait_until

ROOT = Path(__file__).parents[3]
KILO = 1000

needs_nginx = pytest.mark.skipif(bool(missing_for_nginx()), reason=f"needs nginx: {missing_for_nginx()}")

# Opens shards given as URL, size and digest, says so, and holds them until it is ended.
HOLDER = """
import sys
from types import SimpleNamespace
from data_pipeline.storage import room
from data_pipeline.storage.cache import ShardCache
cache = ShardCache(max_bytes=int(sys.argv[1]))
for url, num_bytes, digest in zip(*[iter(sys.argv[2:])] * 3):
    shard = SimpleNamespace(url=url, num_bytes=int(num_bytes), digest=digest, is_checked_whole=True)
    cache.open(url, shard)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NginxServer]:
    (tmp_path / "served").mkdir()
    with nginx_server(tmp_path / "nginx", tmp_path / "served") as running:
        yield running


def stored(path: Path, content: bytes, url: str | None = None) -> Shard:
    """A file with this content and its entry in an index."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    digest = xxhash.xxh3_128_hexdigest(content)
    return Shard(name=path.name, url=url or str(path), num_samples=1, num_bytes=len(content), digest=digest)


def compressed(path: Path, content: bytes) -> Shard:
    return stored(path, gzip.compress(content, 1))


def read(cache: ShardCache, shard: Shard) -> bytes:
    descriptor = cache.open(shard.url, shard)
    try:
        return os.pread(descriptor, 1 << 30, 0)
    finally:
        os.close(descriptor)


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def start(*shards: Shard, max_bytes: int) -> subprocess.Popen[str]:
    places = [str(part) for shard in shards for part in (shard.url, shard.num_bytes, shard.digest)]
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(max_bytes), *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_run_writes_its_bound_with_a_unit() -> None:
    assert DataConfig(train="unused", cache_size="200GB").cache_size == 200_000_000_000  # type: ignore[arg-type]
    assert DataConfig(train="unused", cache_size="1.5TiB").cache_size == 3 << 39  # type: ignore[arg-type]
    assert DataConfig(train="unused").cache_size is None
    for wrong in ("0", "much", "-3GB"):
        with pytest.raises(ValueError, match="cache_size"):
            DataConfig(train="unused", cache_size=wrong)  # type: ignore[arg-type]


def test_the_least_recently_opened_goes_when_room_is_needed(tmp_path: Path, folder: Path) -> None:
    a, b, c, d = (compressed(tmp_path / f"{name}.tar.gz", os.urandom(100 * KILO)) for name in "abcd")
    cache = ShardCache(max_bytes=350 * KILO)
    for shard in (a, b, c, a, d):
        read(cache, shard)
    assert {path.name[33:] for path in folder.glob("*.tar")} == {"a.tar", "c.tar", "d.tar"}


@settings(max_examples=20, deadline=None)
@given(
    num_kilos=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    opened=st.lists(st.integers(0, 5), max_size=20),
    bound=st.integers(6, 15),
)
def test_it_holds_what_a_least_recently_used_list_of_that_many_bytes_holds(
    tmp_path_factory: pytest.TempPathFactory, num_kilos: list[int], opened: list[int], bound: int
) -> None:
    place = tmp_path_factory.mktemp("lru")
    contents = [os.urandom(size * KILO) for size in num_kilos]
    shards = [compressed(place / f"{number}.tar.gz", content) for number, content in enumerate(contents)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIRADA_CACHE", str(place / "cache"))
        cache = ShardCache(max_bytes=bound * KILO + 100)  # what gzip adds to random bytes counts at first
    held: OrderedDict[int, int] = OrderedDict()
    for number in (number % len(shards) for number in opened):
        assert read(cache, shards[number]) == contents[number]
        size = held.pop(number, None)
        while size is None and sum(held.values()) + num_kilos[number] > bound:
            held.popitem(last=False)
        held[number] = num_kilos[number]
        assert {int(path.name[33:-4]) for path in cache.folder.glob("*.tar")} == set(held)


def test_what_another_process_has_open_stays_and_the_bound_is_exceeded_with_a_warning(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, other, third = (compressed(tmp_path / f"{name}.tar.gz", os.urandom(100 * KILO)) for name in "abc")
    holder = start(held, max_bytes=250 * KILO)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    cache = ShardCache(max_bytes=250 * KILO)
    for shard in (other, third, other, third):
        read(cache, shard)
    assert cache.path(held.url, held).exists()
    assert sizes(folder) <= 250 * KILO
    assert not caplog.records
    kept = cache.open(other.url, other)
    descriptor = cache.open(third.url, third)
    assert sizes(folder) > 250 * KILO
    assert "holds more than its bound: all of it is being read at once; raise data.cache_size" in caplog.text
    os.close(kept)
    os.close(descriptor)
    holder.communicate()
    read(cache, stored(tmp_path / "d.tar.gz", gzip.compress(os.urandom(100 * KILO))))
    assert sizes(folder) <= 250 * KILO


def test_descriptors_of_this_process_are_released_before_the_bound_is_exceeded(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = (compressed(tmp_path / f"{name}.tar.gz", os.urandom(100 * KILO)) for name in "ab")
    cache = ShardCache(max_bytes=150 * KILO)
    open_ones = [cache.open(a.url, a)]

    def release() -> bool:
        had_open = bool(open_ones)
        while open_ones:
            os.close(open_ones.pop())
        return had_open

    os.close(cache.open(b.url, b, release=release))
    assert [path.name[33:] for path in folder.glob("*.tar")] == ["b.tar"]
    assert not caplog.records


def test_a_removed_copy_stays_readable_to_those_who_have_it_open(tmp_path: Path) -> None:
    content = os.urandom(100 * KILO)
    shard = compressed(tmp_path / "a.tar.gz", content)
    cache = ShardCache()
    descriptor = cache.open(shard.url, shard)
    cache.path(shard.url, shard).unlink()
    assert os.pread(descriptor, 1 << 20, 0) == content
    os.close(descriptor)


def test_a_shard_larger_than_the_cache_is_an_error_that_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    shard = compressed(tmp_path / "a.tar.gz", os.urandom(100 * KILO))
    with pytest.raises(
        DataError, match=r"of 100,\d+ bytes or more does not fit.* may hold 99,000.*raise data.cache_size"
    ):
        ShardCache(max_bytes=99 * KILO).open(shard.url, shard)
    assert list(folder.iterdir()) == [folder / ".lock"]


def test_an_archive_that_unpacks_to_more_than_the_cache_is_stopped_there(
    tmp_path: Path, folder: Path
) -> None:
    bomb = compressed(tmp_path / "a.tar.gz", bytes(300_000 * KILO))
    with pytest.raises(DataError, match="does not fit the cache"):
        ShardCache(max_bytes=5_000 * KILO).open(bomb.url, bomb)
    assert list(folder.iterdir()) == [folder / ".lock"]


def test_without_a_bound_copies_take_no_more_than_they_leave_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system of its own needs root: {mounted.stderr.strip()}")
    try:
        monkeypatch.setenv("MIRADA_CACHE", str(disk))
        cache = ShardCache()
        for number in range(8):
            read(cache, compressed(tmp_path / f"{number}.tar.gz", os.urandom(1000 * KILO)))
        assert len(list(disk.glob("*.tar"))) == 4
        with pytest.raises(
            DataError, match=r"cannot be copied to the cache.*No space left on device.*MIRADA_CACHE"
        ):
            read(ShardCache(max_bytes=10**9), compressed(tmp_path / "large.tar.gz", os.urandom(9000 * KILO)))
        assert not list(disk.glob("*.partial"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_copy_that_lost_bytes_is_made_again(tmp_path: Path) -> None:
    import fsspec

    content = os.urandom(10 * KILO)
    shard = stored(tmp_path / "a.tar", content, url="memory://corpus/a.tar")
    with fsspec.open(shard.url, "wb") as remote:
        remote.write(content)
    cache = ShardCache()
    read(cache, shard)
    os.truncate(cache.path(shard.url, shard), 5 * KILO)
    assert read(cache, shard) == content


@needs_nginx
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_content_of_another_digest_is_fetched_once_more_and_then_refused(
    server: NginxServer, tmp_path: Path, folder: Path, name: str
) -> None:
    content = gzip.compress(os.urandom(10 * KILO)) if name.endswith(".gz") else os.urandom(10 * KILO)
    shard = stored(tmp_path / "served" / name, content, url=f"{server.url}/{name}")
    (tmp_path / "served" / name).write_bytes(
        content[:-6] + b"mirada" if name == "a.tar" else content[:4] + b"mira" + content[8:]
    )
    with pytest.raises(DataError, match=rf"shard '{shard.url}' has not the digest its index says"):
        ShardCache().open(shard.url, shard)
    wait_until(lambda: len(server.requests(f"/{name}")) >= 2)
    assert len(server.requests(f"/{name}")) == 2
    assert list(folder.iterdir()) == [folder / ".lock"]


@needs_nginx
def test_a_remote_object_larger_than_the_index_says_is_refused(
    server: NginxServer, tmp_path: Path, folder: Path
) -> None:
    shard = stored(tmp_path / "served" / "a.tar", os.urandom(10 * KILO), url=f"{server.url}/a.tar")
    with open(tmp_path / "served" / "a.tar", "ab") as file:
        file.write(bytes(1_000 * KILO))
    with pytest.raises(DataError, match="has 1010000 bytes, and its index says 10000 bytes"):
        ShardCache().open(shard.url, shard)
    assert list(folder.iterdir()) == [folder / ".lock"]


@needs_nginx
def test_processes_that_want_one_shard_at_once_fetch_it_once(server: NginxServer, tmp_path: Path) -> None:
    content = os.urandom(300 * KILO)
    shard = stored(tmp_path / "served" / "a.tar", content, url=f"{server.url}/a.tar")
    with server.fault("slow"):
        holders = [start(shard, max_bytes=1_000 * KILO) for _ in range(3)]
        for holder in holders:
            holder.communicate()
    assert read(ShardCache(), shard) == content
    wait_until(lambda: bool(server.requests("/a.tar")))
    (request,) = server.requests("/a.tar")
    assert request.bytes_sent > 300 * KILO


@pytest.mark.slow
@needs_nginx
def test_a_process_killed_in_a_download_leaves_nothing_that_hinders_or_stays(
    server: NginxServer, tmp_path: Path, folder: Path
) -> None:
    content = os.urandom(30_000 * KILO)  # more than a minute's worth of a slow server
    shard = stored(tmp_path / "served" / "a.tar", content, url=f"{server.url}/a.tar")
    unwanted = stored(tmp_path / "served" / "b.tar", os.urandom(30_000 * KILO), url=f"{server.url}/b.tar")
    for victim_of in (shard, unwanted):
        with server.fault("slow"):
            victim = start(victim_of, max_bytes=40_000 * KILO)
            wait_until(lambda: any(path.stat().st_blocks > 64 for path in folder.glob("*.partial")))
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        assert list(folder.glob("*.partial"))
        assert read(ShardCache(max_bytes=40_000 * KILO), shard) == content
    read(ShardCache(max_bytes=40_000 * KILO), stored(tmp_path / "c.tar.gz", gzip.compress(content[:KILO])))
    assert not list(folder.glob("*.partial"))


@needs_nginx
def test_a_thread_that_fetches_ahead_and_the_reader_fetch_once(server: NginxServer, tmp_path: Path) -> None:
    content = os.urandom(300 * KILO)
    shard = stored(tmp_path / "served" / "a.tar", content, url=f"{server.url}/a.tar")
    cache = ShardCache()
    with server.fault("slow"):
        ahead = threading.Thread(target=cache.prefetch, args=(shard.url, shard), kwargs={"keep": ()})
        ahead.start()
        wait_until(lambda: any(cache.folder.glob("*.partial")) or any(cache.folder.glob("*.tar")))
        assert read(cache, shard) == content
        ahead.join()
    wait_until(lambda: bool(server.requests("/a.tar")))
    assert len(server.requests("/a.tar")) == 1


def test_fetching_ahead_takes_no_room_from_what_is_wanted_sooner(tmp_path: Path, folder: Path) -> None:
    a, b, c = (compressed(tmp_path / f"{name}.tar.gz", os.urandom(100 * KILO)) for name in "abc")
    cache = ShardCache(max_bytes=250 * KILO)
    assert cache.prefetch(a.url, a, keep=())
    assert cache.prefetch(b.url, b, keep=())
    names = [cache.path(shard.url, shard).name for shard in (a, b)]
    assert not cache.prefetch(c.url, c, keep=names)
    assert sorted(path.name for path in folder.glob("*.tar")) == sorted(names)
    assert not list(folder.glob("*.partial"))
    assert cache.prefetch(c.url, c, keep=names[1:])
    assert not cache.path(a.url, a).exists()


def test_a_copy_that_is_finished_while_room_is_counted_is_counted_too(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other, new = (compressed(tmp_path / f"{name}.tar.gz", os.urandom(100 * KILO)) for name in "abc")
    cache, bound = ShardCache(max_bytes=250 * KILO), 250 * KILO
    read(cache, old)
    is_written, is_counted = threading.Event(), threading.Event()

    def fetch_other() -> None:
        is_written.set()
        assert is_counted.wait(60)

    def look(path: Path) -> object:
        if path == others:
            looks.append(path)
            if len(looks) == 2:  # the first is for the bound, which may depend on the disk
                is_counted.set()
                fetching.join(0.3)  # as far as it gets: it is not to get through in the midst of the count
        return looked_at(path)

    looked_at, looks = room._look_at, list[Path]()
    others = cache.path(other.url, other).with_suffix(room.PARTIAL)
    fetching = threading.Thread(target=read, args=(cache, other))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: fetch_other())
        fetching.start()
        assert is_written.wait(60)
    monkeypatch.setattr(room, "_look_at", look)
    read(cache, new)
    fetching.join()
    assert sizes(folder) <= bound
    assert not cache.path(old.url, old).exists()
