"""Plan: which sample stands where in which batch: a pure function of (lengths, seed, epoch, global batch).

Neither world size nor workers nor history enter. Every batch takes the same number of slots from each stream, stream
after stream: rank r of R takes one contiguous part of each batch, and reads only its share of the shards where R
divides the number of streams.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.order.streams import Streams

Ints = NDArray[np.int64]

_MOST_STREAMS = 64
_SLOTS_PER_STREAM = 256
"""From this many images of a batch on, another stream costs a rank less than it saves (docs/order.md)."""


class Plan:
    """The order of one run over `lengths[s]` samples of each shard s; positions count samples in shard order.

    An epoch has N // B batches; the N % B samples left out are others in each epoch.
    """

    def __init__(
        self,
        lengths: Ints,
        *,
        global_batch: int,
        seed: int,
        window: int = 8,
        num_streams: int | None = None,
    ) -> None:
        self.num_samples = int(lengths.sum())
        self.global_batch = global_batch
        self.batches_per_epoch = self.num_samples // global_batch
        if self.batches_per_epoch == 0:
            raise DataError(
                f"a global batch of {global_batch} images needs at least as many samples, and there are "
                f"{self.num_samples}; lower train.global_batch or add data"
            )
        self.num_streams = num_streams or default_streams(global_batch, len(lengths), window)
        self._per_stream = slots_per_stream(global_batch, self.num_streams)
        self._streams = Streams(
            lengths,
            num_streams=self.num_streams,
            stream_length=self.batches_per_epoch * self._per_stream,
            seed=seed,
            window=window,
        )

    def batch(self, epoch: int, step: int, slots: slice | None = None) -> Ints:
        """Positions of the samples of a batch; with `slots`, of that part of it, at that part of the cost."""
        if not 0 <= step < self.batches_per_epoch:
            raise ValueError(f"step {step} is outside the epoch's 0..{self.batches_per_epoch - 1}")
        first, stop, _ = (slots or slice(None)).indices(self.global_batch)
        size, before = self._per_stream, step * self._per_stream
        parts = []
        for stream in range(first // size, -(-stop // size)):
            start, end = max(first - stream * size, 0), min(stop - stream * size, size)
            parts.append(self._streams.part(epoch, stream, before + start, before + end))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def share(self, epoch: int, step: int, slots: slice | None = None) -> tuple[Ints, Ints]:
        """What `batch` gives, and for each slot how often its corpus was gone through before: here the epoch."""
        positions = self.batch(epoch, step, slots)
        return positions, np.full(len(positions), epoch, np.int64)

    def shards(self, epoch: int, slots: slice) -> Ints:
        """The shards, in one pass, that these slots of all batches are read from."""
        return self._streams.shards(epoch, *stream_range(slots, self._per_stream))

    def passes_done(self, flat_step: int) -> tuple[float, ...]:
        """How often each corpus (here the one) was gone through after so many batches."""
        return (flat_step / self.batches_per_epoch,)

    def passes_begun(self, num_slots: int) -> tuple[int, ...]:
        """How many passes over each corpus (here the one) the first so many slots of every stream are from."""
        return (-(-num_slots // self._streams.stream_length),)


def rank_slots(global_batch: int, rank: int, world_size: int) -> slice:
    """The slots of a global batch that are this rank's."""
    if global_batch % world_size:
        raise DataError(
            f"a global batch of {global_batch} images cannot be shared equally by {world_size} ranks; "
            f"make train.global_batch a multiple of {world_size}, or start other ranks"
        )
    share = global_batch // world_size
    return slice(rank * share, (rank + 1) * share)


def eval_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """(positions, weights) of this rank's evaluation batches: every sample once; padding is -1, weight 0.

    Each rank takes one contiguous part and all have the same number of batches of the same size.
    """
    start, stop = rank * num_samples // world_size, (rank + 1) * num_samples // world_size
    longest = -(-num_samples // world_size)
    num_batches = -(-longest // batch_size)
    positions = np.full(num_batches * batch_size, -1, np.int64)
    positions[: stop - start] = np.arange(start, stop)
    weights = (positions >= 0).astype(np.float32)
    return list(zip(positions.reshape(-1, batch_size), weights.reshape(-1, batch_size), strict=True))


def default_streams(global_batch: int, num_shards: int, window: int) -> int:
    """As many as have a full window of shards each: the largest divisor of the batch within that and the limit."""
    limit = max(_MOST_STREAMS, global_batch // _SLOTS_PER_STREAM)
    most = min(limit, max(1, num_shards // window))
    return next(count for count in range(most, 0, -1) if global_batch % count == 0)


def stream_range(slots: slice, slots_per_stream: int) -> tuple[int, int]:
    """First and last + 1 of the streams that fill these slots."""
    return slots.start // slots_per_stream, -(-slots.stop // slots_per_stream)


def slots_per_stream(global_batch: int, num_streams: int) -> int:
    """Slots of every batch that one stream fills; DataError where streams cannot fill it equally."""
    if global_batch % num_streams:
        raise DataError(
            f"data.streams = {num_streams} does not divide the global batch of {global_batch}; choose a divisor"
        )
    return global_batch // num_streams
