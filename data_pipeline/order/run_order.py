"""RunOrder: the samples of every batch of a run, by the names they have in its index.

data section -> Selection -> Plan, or Mixture where there are several corpora -> batch t -> sample ids
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.data import DataConfig, Weight
from data_pipeline.index import ShardIndex
from data_pipeline.joined import JoinedIndex
from data_pipeline.order.mixture import Corpus, Mixture
from data_pipeline.order.plan import Plan
from data_pipeline.order.selection import Selection

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Part of a batch."""

    sample_ids: Ints
    passes: Ints
    """For each sample, how often its corpus was gone through before; it is varied by this number."""


class RunOrder:
    """The order of a run over `index` (from `open_training`); `flat_step` counts batches from the run's start."""

    def __init__(self, index: ShardIndex, data: DataConfig, *, global_batch: int, seed: int) -> None:
        self._selection = Selection(index, data)
        self._plan = _make_plan(index, data, self._selection.lengths, global_batch, seed)
        self.num_samples = self._plan.num_samples
        """Samples there are to train on (those kept by label_fraction and unlabelled)."""
        self.global_batch = global_batch
        self.num_streams = self._plan.num_streams
        self.batches_per_epoch = self._plan.batches_per_epoch
        self._names = [member.name for member in _members(index)]

    def share(self, flat_step: int, slots: slice | None = None) -> Share:
        """A batch, or with `slots` that part of it."""
        positions, passes = self._plan.share(*divmod(flat_step, self.batches_per_epoch), slots)
        return Share(sample_ids=self._selection.ids(positions), passes=passes)

    def substitutes(self, flat_step: int, slots: slice, attempt: int) -> Share:
        """What replaces images of a batch that cannot be used: the same slots of a batch that follows.

        A function of the plan alone, in shards that this rank reads anyway.
        """
        epoch, step = divmod(flat_step, self.batches_per_epoch)
        return self.share(epoch * self.batches_per_epoch + (step + attempt) % self.batches_per_epoch, slots)

    def shards(self, epoch: int, slots: slice) -> Ints:
        """The shards, in one pass over each corpus, that these slots of all batches are read from."""
        return self._plan.shards(epoch, slots)

    def passes_done(self, flat_step: int) -> dict[str, float]:
        """How often each corpus was gone through after so many batches, by name."""
        return dict(zip(self._names, self._plan.passes_done(flat_step), strict=True))


def _make_plan(
    index: ShardIndex, data: DataConfig, lengths: Ints, global_batch: int, seed: int
) -> Plan | Mixture:
    shared = {"global_batch": global_batch, "seed": seed, "window": data.shuffle_window}
    if len(_members(index)) != 1 + len(data.mixture):
        raise ValueError("data.mixture is not what this index holds; open it with open_training(data)")
    if not isinstance(index, JoinedIndex):
        return Plan(lengths, **shared, num_streams=data.streams)
    weights = [Weight(1, "passes"), *(corpus.weight for corpus in data.mixture)]
    parts = np.split(lengths, index.first_shards[1:-1])
    corpora = [
        Corpus(name=member.name, lengths=part, weight=weight)
        for member, part, weight in zip(index.members, parts, weights, strict=True)
    ]
    return Mixture(corpora, **shared, num_streams=data.streams)


def _members(index: ShardIndex) -> tuple[ShardIndex, ...]:
    return index.members if isinstance(index, JoinedIndex) else (index,)
