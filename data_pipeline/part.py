"""Part: some samples of an index as an index of their own, in its order; and the part that a run does not train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from configs.data import DataConfig
from data_pipeline.index import ShardIndex
from data_pipeline.randomness import hash_words, to_unit

Ints = NDArray[np.int64]


class Part(ShardIndex):
    """The chosen rows of each shard; samples are counted anew."""

    def __init__(self, index: ShardIndex, chosen: Sequence[Ints]) -> None:
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


def held_out(index: ShardIndex, data: DataConfig) -> Part:
    """The images that ``data.held_out`` keeps from training."""
    bounds = zip(index.starts[:-1].tolist(), index.starts[1:].tolist(), strict=True)
    return Part(index, [np.flatnonzero(is_held_out(data, np.arange(first, stop))) for first, stop in bounds])


def is_held_out(data: DataConfig, sample_ids: Ints) -> NDArray[np.bool_]:
    """Whether a sample is kept from training."""
    if not data.held_out:
        return np.zeros(len(sample_ids), bool)
    return to_unit(hash_words("held out", sample_ids)) < data.held_out
