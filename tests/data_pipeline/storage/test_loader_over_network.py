from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from configs.data import DataConfig
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.index import Origin, ShardIndex, write_index
from data_pipeline.loader import ShardLoader
from tests.support.nginx import NginxServer, missing_for_nginx, nginx_server, wait_until
from tests.support.s3_server import missing_for_s3, s3_server
from tests.support.shards import make_shards

PLUG_S = float(os.environ.get("MIRADA_TEST_PLUG_S", "3"))
LENGTHS = [20] * 12
BATCH = 10

needs_nginx = pytest.mark.skipif(bool(missing_for_nginx()), reason=f"needs nginx: {missing_for_nginx()}")
needs_s3 = pytest.mark.skipif(bool(missing_for_s3()), reason=f"needs an S3 server: {missing_for_s3()}")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("served"), LENGTHS)


@pytest.fixture
def server(local: ShardIndex, tmp_path: Path) -> Iterator[NginxServer]:
    with nginx_server(tmp_path / "nginx", local.folder) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def elsewhere(local: ShardIndex, base: str, folder: Path) -> ShardIndex:
    """The same corpus, its shards at `base`."""
    rows = {shard.name: local.rows(number) for number, shard in enumerate(local.shards)}
    return write_index(
        folder,
        name=local.name,
        split=local.split,
        classes=local.classes,
        shards=local.shards,
        rows=rows,
        origin=Origin(base=base),
    )


def loader(index: ShardIndex, *, rank: int = 0, world_size: int = 1, **changes: object) -> ShardLoader:
    fields: dict[str, object] = {
        "train": "unused",
        "image_size": 28,
        "channels": 1,
        "mean": (0.5,),
        "std": (0.5,),
    }
    fields |= {"workers": 0, "prefetch": 1, "streams": 1, "shuffle_window": 2}
    data = DataConfig(**(fields | changes))  # type: ignore[arg-type]
    return ShardLoader(index, data, global_batch=BATCH, seed=7, rank=rank, world_size=world_size)


def take(batches: Iterator[Batch], count: int) -> list[tuple[list[int], bytes]]:
    return [
        (batch.sample_ids.tolist(), batch.images.contiguous().numpy().tobytes())
        for batch in itertools.islice(batches, count)
    ]


def held(cache: Path) -> int:
    total = 0
    for path in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another thread fetches ahead and makes room
            total += path.stat().st_size
    return total


@needs_nginx
def test_batches_over_http_are_those_from_disk_and_the_cache_keeps_its_bound(
    server: NginxServer, local: ShardIndex, tmp_path: Path, cache: Path
) -> None:
    remote = elsewhere(local, server.url, tmp_path / "index")
    bound = 4 * max(shard.num_bytes for shard in local.shards)
    over_http = iter(loader(remote, cache_size=bound))
    for expected in take(iter(loader(local)), 40):
        assert take(over_http, 1) == [expected]
        # No look is at one moment: a shard may be counted before it makes room for another, which is counted too.
        wait_until(lambda: held(cache) <= bound)


@pytest.mark.slow
@needs_nginx
def test_a_plug_pulled_in_the_middle_costs_no_sample(
    server: NginxServer, local: ShardIndex, tmp_path: Path
) -> None:
    expected = take(iter(loader(local)), 24)
    batches = iter(loader(elsewhere(local, server.url, tmp_path / "index"), workers=1))
    got = take(batches, 4)
    server.kill()
    pulled = time.monotonic()
    back = threading.Timer(PLUG_S, server.start)
    back.start()
    got += take(batches, 20)
    assert got == expected
    assert time.monotonic() - pulled >= PLUG_S  # it was felt: what was left to fetch came only afterwards
    back.join()


@needs_nginx
def test_ranks_of_a_node_fetch_each_shard_once(
    server: NginxServer, local: ShardIndex, tmp_path: Path
) -> None:
    remote = elsewhere(local, server.url, tmp_path / "index")
    ranks = [iter(loader(remote, rank=rank, world_size=2, workers=1)) for rank in range(2)]
    for _ in range(24):
        for batches in ranks:
            take(batches, 1)
    wait_until(lambda: len(server.requests()) >= len(LENGTHS))
    times = Counter(request.path for request in server.requests())
    assert times == {f"/{shard.name}": 1 for shard in local.shards}


@needs_nginx
def test_a_shard_that_was_exchanged_on_the_server_stops_the_run_with_its_url(
    server: NginxServer, local: ShardIndex, tmp_path: Path
) -> None:
    other = make_shards(tmp_path / "other", [15])
    remote = elsewhere(other, server.url, tmp_path / "index")
    with pytest.raises(
        DataError, match=rf"{server.url}/test-000000.tar' has \d+ bytes, and its index says \d+ bytes"
    ):
        take(iter(loader(remote)), 1)


@pytest.mark.slow
@needs_s3
def test_batches_over_s3_are_those_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = make_shards(tmp_path / "served", [20, 20], tar_suffix=".tar.gz")
    with s3_server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = fsspec.filesystem("s3")
        bucket.mkdir("corpus")
        for shard in local.shards:
            bucket.put_file(shard.url, f"corpus/train/{shard.name}")
        remote = elsewhere(local, "s3://corpus/train", tmp_path / "index")
        assert take(iter(loader(remote)), 8) == take(iter(loader(local)), 8)
