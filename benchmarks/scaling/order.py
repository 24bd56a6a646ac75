"""The data plan of one rank: the index of so many samples, shared by so many ranks.

python -m benchmarks.scaling.order FOLDER RANKS SEED: one start of one rank, in a process of its own, as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.planning import peak_mb, write_synthetic_index
from configs.data import DataConfig
from data_pipeline.index import SAMPLE, ShardIndex, open_index
from data_pipeline.order.plan import rank_slots
from data_pipeline.order.run_order import RunOrder

SAMPLES_PER_SHARD = 10_000
SHARE = 16
"""Images of one rank in each global batch."""
RANKS_PER_NODE = 8
_NODES_ASKED = 4
_ROW_FILE_HEADER = 128  # bytes of a row file beside its rows


def measure_order(num_samples: int, ranks: Sequence[int], *, rounds: int) -> dict[int, dict[str, Any]]:
    """By number of ranks: seconds to open the index and to plan the first batch, MB of both, shards a node reads.

    Medians of the rounds, each with a random rank at a random place of the run.
    """
    num_shards = num_samples // SAMPLES_PER_SHARD
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_index(Path(folder), num_samples, num_shards)
        info_bytes = (Path(folder) / "_info.json").stat().st_size
        index_bytes = info_bytes + SAMPLE.itemsize * num_samples + _ROW_FILE_HEADER * num_shards
        index = open_index(folder)
        found = {}
        for num_ranks in ranks:
            starts = [_start_aside(folder, num_ranks, seed) for seed in range(rounds)]
            costs = {key: median(start[key] for start in starts) for key in starts[0]}
            found[num_ranks] = {
                **costs,
                **reading(index, num_ranks),
                "shards": num_shards,
                "index_mb": index_bytes / 1e6,
            }
        return found


def reading(index: ShardIndex, num_ranks: int) -> dict[str, int]:
    """How many shards a node reads in an epoch (median of four nodes), and into how many streams they are dealt."""
    global_batch, num_nodes = SHARE * num_ranks, max(1, num_ranks // RANKS_PER_NODE)
    order = RunOrder(index, _data(index.folder), global_batch=global_batch, seed=0)
    nodes = np.random.default_rng(0).integers(num_nodes, size=_NODES_ASKED)
    shards = [len(order.shards(0, rank_slots(global_batch, int(node), num_nodes))) for node in nodes]
    return {"node_shards": round(median(shards)), "streams": order.num_streams}


def start_rank(folder: str, num_ranks: int, seed: int) -> dict[str, float]:
    """Opens the index and plans a batch, as a rank does that resumes somewhere."""
    rng = np.random.default_rng([num_ranks, seed])
    before, began = peak_mb(), time.perf_counter()
    index = open_index(folder)
    opened = time.perf_counter()
    order = RunOrder(index, _data(folder), global_batch=SHARE * num_ranks, seed=seed)
    slots = rank_slots(SHARE * num_ranks, int(rng.integers(num_ranks)), num_ranks)
    order.share(int(rng.integers(3 * order.batches_per_epoch)), slots)
    planned = time.perf_counter()
    return {"open_s": opened - began, "first_s": planned - opened, "memory_mb": peak_mb() - before}


def _start_aside(folder: str, num_ranks: int, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling.order", folder, str(num_ranks), str(seed)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def _data(folder: object) -> DataConfig:
    return DataConfig(train=str(folder))


if __name__ == "__main__":
    json.dump(start_rank(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), sys.stdout)
