"""ReadAhead: which shards the steps to come will read, told to the prefetcher as the steps go by."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.storage.prefetch import Prefetcher

if TYPE_CHECKING:
    from data_pipeline.index import ShardIndex
    from data_pipeline.order.run_order import RunOrder
    from data_pipeline.storage.cache import ShardCache

_STEPS_PER_CALL = (
    32  # that many steps further for each step that is read: ahead soon, and never a pause for it
)
_MAX_STEPS = 4096


class ReadAhead:
    """Wants the shards of the steps after the last one asked about, until they are `num_shards`."""

    def __init__(
        self, index: ShardIndex, order: RunOrder, *, slots: slice, cache: ShardCache, num_shards: int
    ) -> None:
        self._index = index
        self._order = order
        self._own_order: RunOrder | None = None
        self._slots = slots
        self._num_shards = num_shards
        self._prefetcher = Prefetcher(cache, index.shards)
        self._planned = range(0)
        self._last_read: dict[int, int] = {}

    def follow(self, flat_step: int) -> None:
        """This step is read now."""
        if not self._prefetcher.has_work:
            return
        if flat_step not in self._planned:  # the first, or a jump
            self._planned = range(flat_step, flat_step)
            self._last_read.clear()
        self._plan(flat_step)
        self._planned = range(flat_step, self._planned.stop)
        for shard in [shard for shard, step in self._last_read.items() if step < flat_step]:
            del self._last_read[shard]
        self._prefetcher.want(tuple(self._last_read))

    def _plan(self, flat_step: int) -> None:
        if self._own_order is None:
            # A plan keeps the windows it is asked about: the reader's would be computed anew at every step.
            self._own_order = copy.deepcopy(self._order, {id(self._index): self._index})
        first = self._planned.stop
        for step in range(first, min(first + _STEPS_PER_CALL, flat_step + _MAX_STEPS)):
            if step > flat_step and len(self._last_read) >= self._num_shards:
                break
            shards, _ = self._index.locate(self._own_order.share(step, self._slots).sample_ids)
            self._last_read.update(dict.fromkeys(np.unique(shards).tolist(), step))
            self._planned = range(self._planned.start, step + 1)
