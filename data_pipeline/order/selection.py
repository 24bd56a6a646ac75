"""Selection: the samples of an index that a run trains on; a plan runs over its positions."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from configs.data import DataConfig
from data_pipeline.index import ShardIndex
from data_pipeline.part import is_held_out
from data_pipeline.randomness import hash_words, to_unit
from data_pipeline.scan import NO_LABEL

Ints = NDArray[np.int64]
_MOST_SHARDS = 1024


class Selection:
    """All samples that are not held out, with ``data.unlabelled: drop`` those of a usable label, under their own ids.

    Nothing is kept per sample, but for the shards of the moment: a corpus may have billions.
    """

    def __init__(self, index: ShardIndex, data: DataConfig) -> None:
        self._index = index
        self._data = data
        self._chosen: OrderedDict[int, Ints] = OrderedDict()
        self._keeps_unlabelled = data.unlabelled == "keep"
        self._selects_all = self._keeps_unlabelled and not data.held_out
        self.lengths: Ints = index.lengths if self._selects_all else self._count()
        """Selected samples per shard."""
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def ids(self, positions: Ints) -> Ints:
        """Positions among the selected samples -> sample ids."""
        if self._selects_all:
            return positions
        ids, shards = np.empty_like(positions), np.searchsorted(self._starts, positions, side="right") - 1
        for shard in np.unique(shards).tolist():
            here = shards == shard
            ids[here] = self._chosen_ids(shard)[positions[here] - self._starts[shard]]
        return ids

    def _chosen_ids(self, shard: int) -> Ints:
        if shard not in self._chosen:
            self._chosen[shard] = self._choose(shard)
            if len(self._chosen) > _MOST_SHARDS:
                self._chosen.popitem(last=False)
        return self._chosen[shard]

    def _choose(self, shard: int) -> Ints:
        first, stop = int(self._index.starts[shard]), int(self._index.starts[shard + 1])
        ids = np.arange(first, stop)
        is_chosen = ~is_held_out(self._data, ids)
        if not self._keeps_unlabelled:
            is_chosen &= label_is_usable(self._data, ids) & (self._index.rows(shard)["label"] != NO_LABEL)
        chosen: Ints = ids[is_chosen]
        return chosen

    def _count(self) -> Ints:
        return np.array([len(self._choose(shard)) for shard in range(len(self._index.shards))], np.int64)


def label_is_usable(data: DataConfig, sample_ids: Ints) -> NDArray[np.bool_]:
    """Whether a sample belongs to the fraction whose label may be used."""
    if data.label_fraction >= 1.0:
        return np.ones(len(sample_ids), bool)
    return to_unit(hash_words("label", data.label_seed, sample_ids)) < data.label_fraction
