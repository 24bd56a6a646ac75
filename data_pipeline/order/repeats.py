"""Repeats: where the copies of samples stand in the batches of a run (``data.repeats``); pure.

A plan says which samples follow one another in a stream. They are taken by threes, each three of them as often as there
are to be copies: a b c a b c d e f d e f for two. The run's batches are cut from that, wherever a batch ends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Sources(NamedTuple):
    """For each slot of a batch, what stands there."""

    steps: Ints
    """Flat step of the plan."""
    slots: Ints
    """Slot of the plan's batch at that step."""
    copies: Ints
    """Which copy of that sample, from 0."""


class Repeats:
    """`repeats` copies of every sample, in batches that take `slots_per_stream` images from each stream."""

    def __init__(self, *, repeats: int, num_streams: int, slots_per_stream: int) -> None:
        self._repeats = repeats
        self._slots_per_stream = slots_per_stream
        # More than one, since neighbours may be mixed with one another and ought not to be copies of one sample; an odd
        # number, so that each copy has another neighbour; a small one, so that a batch has all copies of most samples.
        self._together = 3 if repeats > 1 else 1
        self._samples_per_stream = max(1, slots_per_stream // repeats)
        self.plan_batch = num_streams * self._samples_per_stream
        """Samples in a batch of the plan: about as many as a batch of the run has."""

    def find(self, flat_step: int, slots: slice) -> Sources:
        """What stands in these slots of a batch of the run."""
        streams, places = np.divmod(np.arange(slots.start, slots.stop), self._slots_per_stream)
        places += flat_step * self._slots_per_stream
        groups, places = np.divmod(places, self._together * self._repeats)
        copies, places = np.divmod(places, self._together)
        steps, places = np.divmod(groups * self._together + places, self._samples_per_stream)
        return Sources(steps, streams * self._samples_per_stream + places, copies)

    def steps_done(self, flat_step: int) -> int:
        """Whole batches of the plan that so many batches of the run have gone through."""
        return flat_step * self._slots_per_stream // (self._samples_per_stream * self._repeats)

    def samples_begun(self, flat_step: int) -> int:
        """Samples of each stream of the plan that so many batches of the run take a copy of."""
        groups, rest = divmod(flat_step * self._slots_per_stream, self._together * self._repeats)
        return groups * self._together + min(rest, self._together)

    def plan_slots(self, slots: slice) -> slice:
        """The slots of the plan's batches that belong to the streams of these slots."""
        first, last = slots.start // self._slots_per_stream, -(-slots.stop // self._slots_per_stream)
        return slice(first * self._samples_per_stream, last * self._samples_per_stream)
