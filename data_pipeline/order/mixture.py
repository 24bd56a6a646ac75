"""Mixture: several corpora in fixed proportions, each in an order of its own; a pure function like Plan.

Stream s of a batch draws its slots from stream s of every corpus, in turn by the corpora's weights: which corpus
its n-th slot has is a function of (s, n). Each corpus goes on through its own passes, whatever the epoch is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.data import Weight
from data_pipeline.errors import DataError
from data_pipeline.order.plan import default_streams, slots_per_stream, stream_range
from data_pipeline.order.streams import Streams
from data_pipeline.randomness import hash_words, permutation

Ints = NDArray[np.int64]

_UNIT_BITS = 30
"""Shares are multiples of 2^-30, so that counts are exact integers: one image in a billion."""
_UNIT = 1 << _UNIT_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """One part of a mixture."""

    name: str
    lengths: Ints
    """Samples per shard."""
    weight: Weight
    """The first has ``1 passes``: that is what an epoch is."""

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return int(self.lengths.sum())


class Mixture:
    """The order of one run over `corpora`; positions count samples in shard order, corpus after corpus."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        *,
        global_batch: int,
        seed: int,
        window: int = 8,
        num_streams: int | None = None,
    ) -> None:
        self.global_batch = global_batch
        self.num_samples = sum(corpus.num_samples for corpus in corpora)
        amounts = samples_per_epoch(corpora)
        self.batches_per_epoch = sum(amounts) // global_batch
        most_shards = max(len(corpus.lengths) for corpus in corpora)
        self.num_streams = num_streams or default_streams(global_batch, most_shards, window)
        self._per_stream = slots_per_stream(global_batch, self.num_streams)
        _check_sizes(corpora, amounts, self)
        self._streams = [
            Streams(
                corpus.lengths,
                num_streams=self.num_streams,
                stream_length=corpus.num_samples // self.num_streams,
                seed=int(hash_words("corpus", seed, number)[0]),
                window=window,
            )
            for number, corpus in enumerate(corpora)
        ]
        self._firsts = np.cumsum([0, *(corpus.num_samples for corpus in corpora)])
        self._first_shards = np.cumsum([0, *(len(corpus.lengths) for corpus in corpora)])[:-1]
        # Of what the corpora before it leave, corpus i has the share ratio[i]; the last has the rest.
        self._ratios = [round(_UNIT * n / sum(amounts[i:])) for i, n in enumerate(amounts[:-1])]
        self._phases = _phases(len(corpora) - 1, self.num_streams)

    def batch(self, epoch: int, step: int, slots: slice | None = None) -> Ints:
        """Positions of the samples of a batch; with `slots`, of that part of it, at that part of the cost."""
        return self.share(epoch, step, slots)[0]

    def share(self, epoch: int, step: int, slots: slice | None = None) -> tuple[Ints, Ints]:
        """What `batch` gives, and for each slot how often its corpus was gone through before."""
        if not 0 <= step < self.batches_per_epoch:
            raise ValueError(f"step {step} is outside the epoch's 0..{self.batches_per_epoch - 1}")
        first, stop, _ = (slots or slice(None)).indices(self.global_batch)
        positions, passes = np.empty(stop - first, np.int64), np.empty(stop - first, np.int64)
        size, before = self._per_stream, (epoch * self.batches_per_epoch + step) * self._per_stream
        streams = range(first // size, -(-stop // size))
        counts = self._counts(slice(streams.start, streams.stop), np.arange(before, before + size + 1))
        for stream in streams:
            start, end = max(first - stream * size, 0), min(stop - stream * size, size)
            part = slice(stream * size + start - first, stream * size + end - first)
            part_counts = counts[:, stream - streams.start, start : end + 1]
            self._fill(stream, part_counts, positions[part], passes[part])
        return positions, passes

    def shards(self, epoch: int, slots: slice) -> Ints:
        """The shards, in the pass `epoch` of each corpus, that these slots of all batches are read from."""
        touched = stream_range(slots, self._per_stream)
        parts = zip(self._first_shards.tolist(), self._streams, strict=True)
        return np.concatenate([first + streams.shards(epoch, *touched) for first, streams in parts])

    def passes_done(self, flat_step: int) -> tuple[float, ...]:
        """How often each corpus was gone through after so many batches."""
        counts = self._counts(slice(None), np.array([flat_step * self._per_stream])).sum(axis=(1, 2))
        return tuple(
            count / (self.num_streams * streams.stream_length)
            for count, streams in zip(counts.tolist(), self._streams, strict=True)
        )

    def passes_begun(self, num_slots: int) -> tuple[int, ...]:
        """How many passes over each corpus the first so many slots of every stream are from."""
        furthest = self._counts(slice(None), np.array([num_slots])).max(axis=(1, 2))
        return tuple(
            -(-count // streams.stream_length)
            for count, streams in zip(furthest.tolist(), self._streams, strict=True)
        )

    def _fill(self, stream: int, counts: Ints, positions: Ints, passes: Ints) -> None:
        for number, streams in enumerate(self._streams):
            mine = np.flatnonzero(np.diff(counts[number]))
            done, goal, length = int(counts[number, 0]), int(counts[number, -1]), streams.stream_length
            while done < goal:
                epoch, place = divmod(done, length)
                num = min(goal - done, length - place)
                slots, mine = mine[:num], mine[num:]
                positions[slots] = self._firsts[number] + streams.part(epoch, stream, place, place + num)
                passes[slots] = epoch
                done += num

    def _counts(self, streams: slice, slots: Ints) -> Ints:
        """[corpus, stream, n] how many of a stream's first `slots` slots each corpus has."""
        left = np.broadcast_to(slots, (len(range(self.num_streams)[streams]), len(slots)))
        counts = []
        for ratio, phases in zip(self._ratios, self._phases[:, streams], strict=True):
            # floor((left * ratio + phase) / unit), without the product, which 64 bits could not hold
            whole, rest = left >> _UNIT_BITS, left & (_UNIT - 1)
            counts.append(whole * ratio + ((rest * ratio + phases[:, None]) >> _UNIT_BITS))
            left = left - counts[-1]
        return np.stack([*counts, left])


def samples_per_epoch(corpora: Sequence[Corpus]) -> list[int]:
    """Samples of each corpus in an epoch: its passes, or its share of everything."""
    passes = [
        0.0 if corpus.weight.unit == "%" else corpus.weight.amount * corpus.num_samples for corpus in corpora
    ]
    shares = [corpus.weight.amount / 100 if corpus.weight.unit == "%" else 0.0 for corpus in corpora]
    whole = sum(passes) / (1 - sum(shares))
    return [round(fixed + share * whole) for fixed, share in zip(passes, shares, strict=True)]


def _phases(num_levels: int, num_streams: int) -> Ints:
    # Evenly spread over the streams, so that batches keep the shares that no single stream can keep in a batch:
    # sum over s of floor(x + s / S) is floor(S x). Further levels take them in another order each.
    even = np.arange(num_streams) * _UNIT // num_streams
    orders = [
        np.arange(num_streams) if level == 0 else permutation(num_streams, "phase", level)
        for level in range(num_levels)
    ]
    return np.array([even[order] for order in orders], np.int64).reshape(num_levels, num_streams)


def _check_sizes(corpora: Sequence[Corpus], amounts: Sequence[int], mixture: Mixture) -> None:
    if mixture.batches_per_epoch == 0:
        raise DataError(
            f"a global batch of {mixture.global_batch} images needs at least as many samples, and an epoch of the "
            f"mixture has {sum(amounts)}; lower train.global_batch or add data"
        )
    for corpus, amount in zip(corpora, amounts, strict=True):
        if corpus.num_samples < mixture.num_streams:
            raise DataError(
                f"{corpus.name!r} has {corpus.num_samples} samples to train on, fewer than the {mixture.num_streams} "
                "streams of the run; set data.streams to a smaller divisor of the global batch"
            )
        if amount < 1:
            raise DataError(
                f"{corpus.name!r} with weight {corpus.weight} has not one image per epoch; raise its weight"
            )
