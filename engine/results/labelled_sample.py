"""LabelledSample: a fixed choice of an index's labelled images, as an index of its own; features are probed with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from configs.base import ConfigError
from configs.data import DataConfig
from data_pipeline.index import ShardIndex
from data_pipeline.order.selection import label_is_usable
from data_pipeline.part import Part, is_held_out
from data_pipeline.randomness import hash_words
from data_pipeline.scan import NO_LABEL

Ints = NDArray[np.int64]


class LabelledSample(Part):
    """At most `size` images whose label may be used, the same for every run, in the order of the index."""

    def __init__(self, index: ShardIndex, data: DataConfig, *, size: int) -> None:
        chosen = _choose(index, data, size)
        if not any(len(rows) for rows in chosen):
            raise ConfigError(
                f"data.train: no image of {index.name!r} has a label that may be used, so features cannot be probed on "
                "data.val: leave data.val out (data.val=null), or raise data.label_fraction"
            )
        super().__init__(index, chosen)


def _choose(index: ShardIndex, data: DataConfig, size: int) -> list[Ints]:
    """Rows of each shard: of all usable labels those with the `size` smallest hashes."""
    usable, keys = [], []
    for shard in range(len(index.shards)):
        ids = np.arange(int(index.starts[shard]), int(index.starts[shard + 1]))
        is_usable = label_is_usable(data, ids) & ~is_held_out(data, ids)
        rows = np.flatnonzero(is_usable & (index.rows(shard)["label"] != NO_LABEL))
        usable.append(rows)
        keys.append(hash_words("probe", ids[rows]))
    together = np.concatenate(keys)
    if len(together) <= size:
        return usable
    limit = np.partition(together, size)[size]
    return [rows[key < limit] for rows, key in zip(usable, keys, strict=True)]
