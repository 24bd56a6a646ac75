from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from configs.data import CorpusConfig, DataConfig, Weight
from data_pipeline.__main__ import app
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.order.plan import rank_slots
from data_pipeline.order.reading import measure_reading
from data_pipeline.order.run_order import RunOrder
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("many"), [6, 5, 7, 6] * 8, size=(8, 8))


def order_of(index: ShardIndex, **changes: object) -> RunOrder:
    data = DataConfig(train="unused", **({"streams": 8, "shuffle_window": 2} | changes))  # type: ignore[arg-type]
    return RunOrder(index, data, global_batch=16, seed=3)


@pytest.mark.parametrize(("num_nodes", "streams"), [(1, 8), (2, 8), (4, 8), (8, 8), (16, 8), (4, 2)])
def test_the_shards_a_node_is_said_to_read_are_those_its_samples_lie_in(
    index: ShardIndex, num_nodes: int, streams: int
) -> None:
    order = order_of(index, streams=streams)
    for node in range(num_nodes):
        slots = rank_slots(16, node, num_nodes)
        steps = range(2 * order.batches_per_epoch, 3 * order.batches_per_epoch)
        samples = np.concatenate([order.share(step, slots).sample_ids for step in steps])
        read = set(index.locate(samples)[0].tolist())
        said = set(order.shards(2, slots).tolist())
        assert read <= said
        if streams >= num_nodes:
            assert read == said


def test_nodes_that_divide_the_streams_read_their_share_and_the_shards_at_its_ends(index: ShardIndex) -> None:
    for num_nodes in (1, 2, 4, 8):
        found = measure_reading(index, order_of(index), global_batch=16, num_nodes=num_nodes)
        assert found.num_shards == 32
        assert found.most_shards <= 32 // num_nodes + 2
        assert 0.95 <= found.amplification <= 1 + 2 * num_nodes / 32
    crowded = measure_reading(index, order_of(index, streams=1), global_batch=16, num_nodes=8)
    assert crowded.amplification == pytest.approx(8, rel=0.05)


def test_in_a_mixture_a_node_reads_its_share_of_every_corpus(index: ShardIndex, tmp_path: Path) -> None:
    make_shards(tmp_path, [9] * 16, size=(8, 8))
    corpus = CorpusConfig(train=str(tmp_path), weight=Weight(25, "%"))
    data = DataConfig(train=str(index.folder), mixture=(corpus,), streams=8)
    joined = open_training(data)
    order = RunOrder(joined, data, global_batch=16, seed=0)
    found = measure_reading(joined, order, global_batch=16, num_nodes=4)
    assert found.num_shards == 48
    assert found.most_shards <= 32 // 4 + 2 + 16 // 4 + 2
    assert order.passes_done(order.batches_per_epoch) == pytest.approx(
        {index.name: 1, tmp_path.name: 0.44}, abs=0.06
    )


def test_the_command_says_how_a_job_reads(index: ShardIndex) -> None:
    said = CliRunner().invoke(app, ["order", str(index.folder), "--global-batch", "16", "--nodes", "3"])
    assert isinstance(said.exception, DataError) and "shared equally by 3 ranks" in str(said.exception)
    options = ["--global-batch", "18", "--nodes", "2", "--streams", "3"]
    said = CliRunner().invoke(app, ["order", str(index.folder), *options])
    assert said.exit_code == 0, said.output
    assert "batches per epoch   10 of 18; 12 samples left out" in said.output
    assert "2 nodes do not divide 3 streams" in said.output
