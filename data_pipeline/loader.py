"""ShardLoader and EvalLoader: an index -> this rank's batches, decoded by worker processes ahead of time.

    RunOrder.share(step, rank's slots) -> sample ids -> SampleReader -> shared memory -> Batch

The position is what the optimizer consumed (`advance`), not what was read ahead; batch t holds the same samples
and pixels with any number of ranks and workers, and after any interruption. A worker that dies is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from configs.base import Duration
from configs.data import DataConfig
from data_pipeline.bad import BadSample, BadSamples
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.order.image_sizes import ImageSizes
from data_pipeline.order.plan import eval_batches, rank_slots
from data_pipeline.order.run_order import RunOrder
from data_pipeline.packet import Packet
from data_pipeline.sidecar import Sidecar
from data_pipeline.steps import EvalSteps, TrainSteps
from data_pipeline.workers import Workers

_STATE_VERSION = 1


class LoaderState(TypedDict):
    """Where a run stands in its data."""

    version: int
    epoch: int
    samples: int
    """Samples of this epoch that the optimizer has consumed, over all ranks."""


class ShardLoader:
    """Endless training batches of one rank, in the order of the run, from the position on."""

    def __init__(
        self,
        index: ShardIndex,
        data: DataConfig,
        *,
        global_batch: int,
        seed: int,
        duration: Duration | None = None,
        needs_captions: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`duration` is the run's; only images whose size depends on it (``data.progressive``) need it.

        With `needs_captions` batches come with captions, and a sample without one counts as one that does not decode.
        """
        slots = rank_slots(global_batch, rank, world_size)
        self._order = RunOrder(index, data, global_batch=global_batch, seed=seed)
        self.num_samples = self._order.num_samples
        """Samples there are to train on (those kept by label_fraction and unlabelled)."""
        self.batches_per_epoch = self._order.batches_per_epoch
        self._global_batch = global_batch
        self._step = 0
        self._bad = BadSamples(
            num_samples=self.num_samples, max_fraction=data.max_bad_fraction, world_size=world_size
        )
        sizes = ImageSizes.of(
            data, duration, steps_per_epoch=self.batches_per_epoch, global_batch=global_batch
        )
        self._steps = TrainSteps(
            index, data, order=self._order, sizes=sizes, slots=slots, seed=seed, needs_captions=needs_captions
        )
        self._workers = Workers(
            self._steps, num_workers=data.workers, prefetch=data.prefetch, persistent=data.workers > 0
        )

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the position on, across epochs, without end; the workers start now."""
        return _batches(self._workers.items(self._step), self._bad)

    def read_beside(self, sidecar: Sidecar) -> None:
        """From its next start on the batches come with what `sidecar` keeps of their images."""
        self._steps.sidecar = sidecar

    def advance(self) -> None:
        """The optimizer has consumed one global batch."""
        self._step += 1

    @property
    def epoch(self) -> int:
        """The epoch the next batch to be consumed belongs to."""
        return self._step // self.batches_per_epoch

    @property
    def passes(self) -> dict[str, float]:
        """How often the optimizer went through each corpus so far, by name."""
        return self._order.passes_done(self._step)

    @property
    def bad_samples(self) -> dict[str, int]:
        """Bad samples this rank has met so far, by reason."""
        return self._bad.counts()

    def drain_bad(self) -> list[BadSample]:
        """Bad samples met since the last call."""
        return self._bad.drain()

    def state_dict(self) -> LoaderState:
        """The position, the same on all ranks and for any number of them."""
        epoch, step = divmod(self._step, self.batches_per_epoch)
        return LoaderState(version=_STATE_VERSION, epoch=epoch, samples=step * self._global_batch)

    def load_state_dict(self, state: LoaderState) -> None:
        """Moves to a saved position; the next iteration starts there."""
        step, rest = divmod(state["samples"], self._global_batch)
        if state["version"] != _STATE_VERSION or rest or step >= self.batches_per_epoch:
            raise DataError(
                f"the saved data position {dict(state)} is not one of this run, which has {self.batches_per_epoch} "
                f"batches of {self._global_batch} per epoch; resume with the data and train.global_batch of then"
            )
        self._step = state["epoch"] * self.batches_per_epoch + step


class EvalLoader:
    """One rank's pass over an index: over all ranks every sample once; equal batch counts, weight 0 for padding."""

    def __init__(
        self, index: ShardIndex, data: DataConfig, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_samples = index.num_samples
        self._bad = BadSamples(
            num_samples=index.num_samples, max_fraction=data.max_bad_fraction, world_size=world_size
        )
        batches = eval_batches(index.num_samples, batch_size, rank, world_size)
        self._num_batches = len(batches)
        self._workers = Workers(
            EvalSteps(index, data, batches),
            num_workers=min(data.workers, len(batches)),
            prefetch=data.prefetch,
            persistent=False,
        )

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """The batches, from the first; an image that cannot be decoded keeps its place with weight 0."""
        return _batches(self._workers.items(0, self._num_batches), self._bad)

    @property
    def bad_samples(self) -> dict[str, int]:
        """Bad samples this rank has met so far, by reason."""
        return self._bad.counts()

    def drain_bad(self) -> list[BadSample]:
        """Bad samples met since the last call."""
        return self._bad.drain()


def _batches(packets: Iterator[Packet], bad: BadSamples) -> Iterator[Batch]:
    for packet in packets:
        bad.add(packet.bad)
        yield packet.batch()
