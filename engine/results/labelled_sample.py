"""LabelledSample: a fixed choice of an index's labelled images, as an index of its own; features are probed with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from configs.base import ConfigError
from configs.data import DataConfig
from data_pipeline.index import ShardIndex
from data_pipeline.order.selection import label_is_usable
from data_pipeline.randomness import hash_words
from data_pipeline.scan import NO_LABEL

Ints = NDArray[np.int64]


class LabelledSample(ShardIndex):
    """At most `size` images whose label may be used, the same for every run, in the order of the index."""

    def __init__(self, index: ShardIndex, data: DataConfig, *, size: int) -> None:
        chosen = _choose(index, data, size)
        if not any(len(rows) for rows in chosen):
            raise ConfigError(
                f"data.train: no image of {index.name!r} has a label that may be used, so features cannot be probed on "
                "data.val: leave data.val out (data.val=null), or raise data.label_fraction"
            )
        self._rows = [index.rows(shard)[rows] for shard, rows in enumerate(chosen)]
        super().__init__(
            folder=index.folder,
            name=index.name,
            split=index.split,
            classes=index.classes,
            shards=tuple(
                replace(shard, num_samples=len(rows))
                for shard, rows in zip(index.shards, chosen, strict=True)
            ),
        )

    def rows(self, shard: int) -> NDArray[np.void]:
        """SAMPLE rows of the chosen images of a shard."""
        return self._rows[shard]


def _choose(index: ShardIndex, data: DataConfig, size: int) -> list[Ints]:
    """Rows of each shard: of all usable labels those with the `size` smallest hashes."""
    usable, keys = [], []
    for shard in range(len(index.shards)):
        ids = np.arange(int(index.starts[shard]), int(index.starts[shard + 1]))
        rows = np.flatnonzero(label_is_usable(data, ids) & (index.rows(shard)["label"] != NO_LABEL))
        usable.append(rows)
        keys.append(hash_words("probe", ids[rows]))
    together = np.concatenate(keys)
    if len(together) <= size:
        return usable
    limit = np.partition(together, size)[size]
    return [rows[key < limit] for rows, key in zip(usable, keys, strict=True)]
