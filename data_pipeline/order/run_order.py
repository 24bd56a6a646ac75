"""RunOrder: the samples of every batch of a run, by the names they have in its index.

data section -> Selection -> Plan, or Mixture where there are several corpora -> Repeats -> batch t -> sample ids
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
from data_pipeline.order.repeats import Repeats
from data_pipeline.order.selection import Selection

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Part of a batch."""

    sample_ids: Ints
    passes: Ints
    """For each sample, how often its corpus was gone through before; it is varied by this number."""
    copies: Ints
    """For each sample, which of its copies in this pass it is, from 0; and by this one."""

    def at(self, slots: Ints) -> Share:
        """What these slots have."""
        return Share(sample_ids=self.sample_ids[slots], passes=self.passes[slots], copies=self.copies[slots])

    def substitute(self, slots: Ints, others: Share) -> None:
        """Puts into these slots what `others` have there."""
        for mine, theirs in (
            (self.sample_ids, others.sample_ids),
            (self.passes, others.passes),
            (self.copies, others.copies),
        ):
            mine[slots] = theirs[slots]


class RunOrder:
    """The order of a run over `index` (from `open_training`); `flat_step` counts batches from the run's start."""

    def __init__(self, index: ShardIndex, data: DataConfig, *, global_batch: int, seed: int) -> None:
        self._selection = Selection(index, data)
        plan = _make_plan(index, data, self._selection.lengths, global_batch, seed, data.streams)
        self.num_samples = plan.num_samples
        """Samples there are to train on (those kept by label_fraction and unlabelled)."""
        self.global_batch = global_batch
        self.num_streams = plan.num_streams
        self.batches_per_epoch = plan.batches_per_epoch
        self._repeats = Repeats(
            repeats=data.repeats,
            num_streams=plan.num_streams,
            slots_per_stream=global_batch // plan.num_streams,
        )
        if data.repeats > 1:
            smaller = self._repeats.plan_batch
            plan = _make_plan(index, data, self._selection.lengths, smaller, seed, plan.num_streams)
        self._plan = plan
        self._names = _names(index)

    def share(self, flat_step: int, slots: slice | None = None) -> Share:
        """A batch, or with `slots` that part of it."""
        first, stop, _ = (slots or slice(None)).indices(self.global_batch)
        sources = self._repeats.find(flat_step, slice(first, stop))
        positions, passes = np.empty(stop - first, np.int64), np.empty(stop - first, np.int64)
        for step in np.unique(sources.steps).tolist():  # one, unless there are repeats
            here = sources.steps == step
            places = sources.slots[here]
            lowest = int(places.min())
            epoch, batch = divmod(step, self._plan.batches_per_epoch)
            found = self._plan.share(epoch, batch, slice(lowest, int(places.max()) + 1))
            positions[here], passes[here] = (part[places - lowest] for part in found)
        return Share(sample_ids=self._selection.ids(positions), passes=passes, copies=sources.copies)

    def substitutes(self, flat_step: int, slots: slice, attempt: int) -> Share:
        """What replaces images of a batch that cannot be used: the same slots of a batch that follows.

        A function of the plan alone, in shards that this rank reads anyway. Where the epoch has no further batch, the
        slots that follow, of each batch again.
        """
        epoch, step = divmod(flat_step, self.batches_per_epoch)
        turn, other = divmod(attempt, self.batches_per_epoch)
        flat = epoch * self.batches_per_epoch + (step + other) % self.batches_per_epoch
        if turn == 0:
            return self.share(flat, slots)
        own = np.arange(*slots.indices(self.global_batch))
        return self.share(flat).at((own + turn) % self.global_batch)

    def shards(self, epoch: int, slots: slice) -> Ints:
        """The shards, in one pass over each corpus, that these slots of all batches are read from."""
        return self._plan.shards(epoch, self._repeats.plan_slots(slots))

    def passes_done(self, flat_step: int) -> dict[str, float]:
        """How often each corpus was gone through after so many batches, by name."""
        passes = self._plan.passes_done(self._repeats.steps_done(flat_step))
        return dict(zip(self._names, passes, strict=True))

    def passes_begun(self, num_epochs: int) -> tuple[int, ...]:
        """How many passes over each corpus so many epochs read from, in the order of the index."""
        return self._plan.passes_begun(self._repeats.samples_begun(num_epochs * self.batches_per_epoch))


def _make_plan(
    index: ShardIndex, data: DataConfig, lengths: Ints, global_batch: int, seed: int, num_streams: int | None
) -> Plan | Mixture:
    shared = {"global_batch": global_batch, "seed": seed, "window": data.shuffle_window}
    if len(_names(index)) != 1 + len(data.mixture):
        raise ValueError("data.mixture is not what this index holds; open it with open_training(data)")
    if not isinstance(index, JoinedIndex):
        return Plan(lengths, **shared, num_streams=num_streams)
    weights = [Weight(1, "passes"), *(corpus.weight for corpus in data.mixture)]
    parts = np.split(lengths, index.first_shards[1:-1])
    corpora = [
        Corpus(name=name, lengths=part, weight=weight)
        for name, part, weight in zip(index.names, parts, weights, strict=True)
    ]
    return Mixture(corpora, **shared, num_streams=num_streams)


def _names(index: ShardIndex) -> tuple[str, ...]:
    return index.names if isinstance(index, JoinedIndex) else (index.name,)
