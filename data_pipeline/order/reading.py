"""Reading: which shards each node of a job reads in an epoch, and how much more that is than reading each once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.index import ShardIndex
from data_pipeline.order.plan import rank_slots
from data_pipeline.order.run_order import RunOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the nodes of a job read in one epoch."""

    num_shards: int
    most_shards: int
    """Of any node."""
    amplification: float
    """Bytes of all shards that any node reads from, over the bytes of the corpus: 1 is each shard on one node."""


def measure_reading(
    index: ShardIndex, order: RunOrder, *, global_batch: int, num_nodes: int, epoch: int = 0
) -> Reading:
    """What `num_nodes` nodes read that share each global batch equally, the ranks of a node side by side."""
    sizes = np.array([shard.num_bytes for shard in index.shards], np.int64)
    shards = [order.shards(epoch, rank_slots(global_batch, node, num_nodes)) for node in range(num_nodes)]
    return Reading(
        num_shards=len(sizes),
        most_shards=max(len(of_node) for of_node in shards),
        amplification=sum(int(sizes[of_node].sum()) for of_node in shards) / int(sizes.sum()),
    )
