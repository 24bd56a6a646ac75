"""Plan: which sample stands where in which batch: a pure function of (lengths, seed, epoch, global batch).

    shards            permuted per epoch, laid end to end, started at a random place
    -> streams        the first T * B samples cut into C equal streams, each with B / C slots of every batch
    -> windows        samples permuted within windows of a stream, so that few shards are read at a time

Neither world size nor workers nor history enter. Slots are stream-major: rank r of R takes one contiguous part of
each batch, and reads only its share of the shards where R divides C.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.randomness import hash_words, permutation

_MAX_STREAMS = 64


class Plan:
    """The order of one run over `lengths[s]` samples of each shard s; positions count samples in shard order.

    An epoch has N // B batches; the N % B samples left out are others in each epoch. By default there are as many
    streams as have at least one full window of shards each: the largest divisor of B that is at most 64 and at most
    shards / window.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
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
        self.num_streams = num_streams or _default_streams(global_batch, len(lengths), window)
        if global_batch % self.num_streams:
            raise DataError(
                f"data.streams = {self.num_streams} does not divide the global batch of {global_batch}; "
                "choose a divisor"
            )
        self._lengths = lengths
        self._seed = seed
        self._per_stream = global_batch // self.num_streams
        self._stream_length = self.batches_per_epoch * self._per_stream
        window_length = max(1, round(window * self.num_samples / len(lengths)))
        self._num_windows = -(-self._stream_length // window_length)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._laid_out: tuple[int, _Layout] | None = None
        self._windows: OrderedDict[tuple[int, int, int], NDArray[np.int64]] = OrderedDict()

    def batch(self, epoch: int, step: int, slots: slice | None = None) -> NDArray[np.int64]:
        """Positions of the samples of a batch; with `slots`, of that part of it, at that part of the cost."""
        if not 0 <= step < self.batches_per_epoch:
            raise ValueError(f"step {step} is outside the epoch's 0..{self.batches_per_epoch - 1}")
        first, stop, _ = (slots or slice(None)).indices(self.global_batch)
        streams = range(first // self._per_stream, -(-stop // self._per_stream))
        parts = [self._stream_part(epoch, stream, step * self._per_stream) for stream in streams]
        places = np.concatenate(parts) if parts else np.empty(0, np.int64)
        skipped = first - streams.start * self._per_stream
        return self._layout(epoch).positions(places[skipped : skipped + stop - first])

    def _stream_part(self, epoch: int, stream: int, start: int) -> NDArray[np.int64]:
        places, stop = [], start + self._per_stream
        while start < stop:
            window = ((start + 1) * self._num_windows - 1) // self._stream_length
            window_start = self._window_start(window)
            upto = min(stop, self._window_start(window + 1))
            order = self._window_order(epoch, stream, window)
            places.append(order[start - window_start : upto - window_start] + window_start)
            start = upto
        return np.concatenate(places) + stream * self._stream_length

    def _window_start(self, window: int) -> int:
        return window * self._stream_length // self._num_windows

    def _window_order(self, epoch: int, stream: int, window: int) -> NDArray[np.int64]:
        key = (epoch, stream, window)
        if key not in self._windows:
            size = self._window_start(window + 1) - self._window_start(window)
            self._windows[key] = permutation(size, "window", self._seed, epoch, stream, window)
            if len(self._windows) > 2 * self.num_streams:  # a batch may lie across two windows of each stream
                self._windows.popitem(last=False)
        return self._windows[key]

    def _layout(self, epoch: int) -> _Layout:
        if self._laid_out is None or self._laid_out[0] != epoch:
            self._laid_out = epoch, _Layout(self._lengths, self._starts, self._seed, epoch)
        return self._laid_out[1]


class _Layout:
    """One epoch's shards laid end to end in random order: place in that line -> position in shard order."""

    def __init__(self, lengths: NDArray[np.int64], starts: NDArray[np.int64], seed: int, epoch: int) -> None:
        order = permutation(len(lengths), "shards", seed, epoch)
        self._line_starts = np.concatenate([[0], np.cumsum(lengths[order])])
        self._shift = starts[order] - self._line_starts[:-1]
        self._num_samples = int(self._line_starts[-1])
        # Without it the remainder would always be the end of a shard, and of a single shard always the same.
        self._beginning = int(hash_words("beginning", seed, epoch)[0] % np.uint64(self._num_samples))

    def positions(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        line = (places + self._beginning) % self._num_samples
        shards = np.searchsorted(self._line_starts, line, side="right") - 1
        return np.asarray(line + self._shift[shards], dtype=np.int64)


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


def _default_streams(global_batch: int, num_shards: int, window: int) -> int:
    most = min(_MAX_STREAMS, max(1, num_shards // window))
    return next(count for count in range(most, 0, -1) if global_batch % count == 0)
