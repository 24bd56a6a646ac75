from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import pytest

from data_pipeline.shard import Shard, checksum
from data_pipeline.storage.cache import ShardCache
from data_pipeline.storage.prefetch import Prefetcher
from tests.support.nginx import wait_until

KILO = 1000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(folder: Path, count: int, suffix: str = ".tar.gz") -> list[Shard]:
    shards = []
    for number in range(count):
        path = folder / f"{number}{suffix}"
        content = os.urandom(100 * KILO)
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
        shards.append(
            Shard(
                name=path.name,
                url=str(path),
                num_samples=1,
                num_bytes=path.stat().st_size,
                digest=checksum(path),
            )
        )
    return shards


def names(folder: Path) -> set[str]:
    return {path.name[33:-4] for path in folder.glob("*.tar")}


def test_what_is_wanted_comes_in_that_order_until_the_cache_is_full(tmp_path: Path, folder: Path) -> None:
    prefetcher = Prefetcher(ShardCache(max_bytes=250 * KILO), make(tmp_path, 5))
    prefetcher.want([3, 1, 3, 0])
    wait_until(lambda: names(folder) == {"3", "1"})
    prefetcher.want([1, 4])
    wait_until(lambda: names(folder) == {"1", "4"})


def test_a_new_wish_replaces_the_old_one_and_a_bad_shard_keeps_no_other_from_coming(
    tmp_path: Path, folder: Path
) -> None:
    shards = make(tmp_path, 3)
    Path(shards[0].url).write_bytes(b"no archive")
    prefetcher = Prefetcher(ShardCache(), shards)
    prefetcher.want([0, 2])
    wait_until(lambda: names(folder) == {"2"})
    prefetcher.want([1])
    wait_until(lambda: names(folder) == {"1", "2"})


def test_shards_that_are_read_where_they_lie_are_no_work(tmp_path: Path, folder: Path) -> None:
    prefetcher = Prefetcher(ShardCache(), make(tmp_path, 2, suffix=".tar"))
    assert not prefetcher.has_work
    prefetcher.want([0, 1])
    assert not folder.exists()


def test_it_travels_to_another_process_without_its_thread(tmp_path: Path, folder: Path) -> None:
    prefetcher = Prefetcher(ShardCache(), make(tmp_path, 2))
    prefetcher.want([0])
    wait_until(lambda: names(folder) == {"0"})
    arrived = pickle.loads(pickle.dumps(prefetcher))
    arrived.want([1])
    wait_until(lambda: names(folder) == {"0", "1"})
