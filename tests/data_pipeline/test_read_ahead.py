from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.data import DataConfig
from data_pipeline.index import ShardIndex
from data_pipeline.order.run_order import RunOrder
from data_pipeline.read_ahead import ReadAhead
from data_pipeline.storage.cache import ShardCache
from tests.support.nginx import wait_until
from tests.support.shards import make_shards

BATCH = 5


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), [10] * 8, tar_suffix=".tar.gz")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_order(index: ShardIndex) -> RunOrder:
    data = DataConfig(train="unused", streams=1, shuffle_window=1)
    return RunOrder(index, data, global_batch=BATCH, seed=3)


def shards_of(index: ShardIndex, order: RunOrder, step: int) -> list[int]:
    return np.unique(index.locate(order.share(step).sample_ids)[0]).tolist()


def held(cache: Path) -> set[int]:
    return {int(path.name[-10:-4]) for path in cache.glob("*.tar")}


@pytest.mark.parametrize("flat_step", [0, 7, 15])
def test_the_shards_of_this_step_and_the_next_ones_come_and_no_others(
    index: ShardIndex, cache: Path, flat_step: int
) -> None:
    order, num_shards = make_order(index), 3
    ahead = ReadAhead(index, order, slots=slice(None), cache=ShardCache(), num_shards=num_shards)
    ahead.follow(flat_step)
    expected: list[int] = []
    for step in range(flat_step, flat_step + 20):
        if step > flat_step and len(expected) >= num_shards:
            break
        expected += [shard for shard in shards_of(index, order, step) if shard not in expected]
    wait_until(lambda: held(cache) == set(expected))


def test_following_a_whole_epoch_every_shard_is_there_before_its_step(index: ShardIndex, cache: Path) -> None:
    order = make_order(index)
    ahead = ReadAhead(index, order, slots=slice(None), cache=ShardCache(), num_shards=2)
    for step in range(order.batches_per_epoch):
        ahead.follow(step)
        wait_until(lambda step=step: held(cache) >= set(shards_of(index, order, step)))  # type: ignore[misc]
    assert held(cache) == set(range(8))
