"""Streams: one corpus shuffled into canonical streams of equal length, pass after pass; any part of one by itself.

shards            permuted per pass, laid end to end, started at a random place
-> streams        cut into equal, contiguous parts of that line
-> windows        samples permuted within windows of a stream, so that few shards are read at a time
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.randomness import hash_words, permutation

Ints = NDArray[np.int64]


class Streams:
    """The samples of shards of these lengths in streams; positions count samples in shard order."""

    def __init__(
        self, lengths: Ints, *, num_streams: int, stream_length: int, seed: int, window: int
    ) -> None:
        self.num_streams = num_streams
        self.stream_length = stream_length
        """Samples of one stream per pass; what does not fill all streams is left out, others in each pass."""
        self._lengths = lengths
        self._seed = seed
        window_length = max(1, round(window * int(lengths.sum()) / len(lengths)))
        self._num_windows = -(-stream_length // window_length)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._line: tuple[int, _Line] | None = None
        # NOTE: one window of each stream that is asked for: what a process holds does not grow with the corpus.
        self._windows: dict[int, tuple[int, int, Ints]] = {}

    def part(self, epoch: int, stream: int, start: int, stop: int) -> Ints:
        """Positions of the samples start..stop (at least one) of a stream in the pass `epoch`."""
        parts = []
        while start < stop:
            window = ((start + 1) * self._num_windows - 1) // self.stream_length
            window_start = self._window_start(window)
            upto = min(stop, self._window_start(window + 1))
            positions = self._window(epoch, stream, window)
            parts.append(positions[start - window_start : upto - window_start])
            start = upto
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shards(self, epoch: int, first: int, stop: int) -> Ints:
        """The shards that the streams first..stop lie in, in the pass `epoch`."""
        start, end = first * self.stream_length, stop * self.stream_length
        return self._line_of(epoch).shards(start, end) if end > start else np.empty(0, np.int64)

    def _window_start(self, window: int) -> int:
        return window * self.stream_length // self._num_windows

    def _window(self, epoch: int, stream: int, window: int) -> Ints:
        known_epoch, known_window, positions = self._windows.get(stream, (-1, -1, None))
        if positions is None or (known_epoch, known_window) != (epoch, window):
            start, stop = self._window_start(window), self._window_start(window + 1)
            first = stream * self.stream_length + start
            order = permutation(stop - start, "window", self._seed, epoch, stream, window)
            positions = self._line_of(epoch).positions(first, first + stop - start)[order]
            self._windows[stream] = epoch, window, positions
        return positions

    def _line_of(self, epoch: int) -> _Line:
        if self._line is None or self._line[0] != epoch:
            self._line = epoch, _Line(self._lengths, self._starts, self._seed, epoch)
        return self._line[1]


class _Line:
    """One pass' shards laid end to end in random order: place in that line -> position in shard order."""

    def __init__(self, lengths: Ints, starts: Ints, seed: int, epoch: int) -> None:
        order = permutation(len(lengths), "shards", seed, epoch)
        self._line_starts = np.concatenate([[0], np.cumsum(lengths[order])])
        self._order, self._lengths = order, lengths
        self._shift = starts[order] - self._line_starts[:-1]
        self._num_samples = int(self._line_starts[-1])
        # Without it the remainder would always be the end of a shard, and of a single shard always the same.
        self._beginning = int(hash_words("beginning", seed, epoch)[0] % np.uint64(self._num_samples))

    def positions(self, start: int, stop: int) -> Ints:
        """Of the places start..stop, in order."""
        parts = [self._positions(*run) for run in self._runs(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shards(self, start: int, stop: int) -> Ints:
        """Which have samples in the places start..stop."""
        parts = [self._order[slice(*self._shards(*run))] for run in self._runs(start, stop)]
        found = np.unique(np.concatenate(parts))
        return found[self._lengths[found] > 0]

    def _runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The places as parts of the line, which begins again where it ends."""
        start, stop, end = start + self._beginning, stop + self._beginning, self._num_samples
        if start < end < stop:
            return [(start, end), (0, stop - end)]
        return [(start, stop)] if stop <= end else [(start - end, stop - end)]

    def _positions(self, start: int, stop: int) -> Ints:
        first, last = self._shards(start, stop)
        borders = self._line_starts[first : last + 1].clip(start, stop)
        positions: Ints = np.arange(start, stop) + np.repeat(self._shift[first:last], np.diff(borders))
        return positions

    def _shards(self, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 of the shards of a run, by their place in the line."""
        first = int(np.searchsorted(self._line_starts, start, side="right")) - 1
        return first, int(np.searchsorted(self._line_starts, stop, side="left"))
