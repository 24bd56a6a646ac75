"""What a worker computes: the number of a step -> the pixels, labels and faults of this rank's batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from configs.base import DataConfig
from data_pipeline.bad import BadSample
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.plan import Plan
from data_pipeline.randomness import hash_words, to_unit
from data_pipeline.reader import SampleReader
from data_pipeline.scan import NO_LABEL
from data_pipeline.selection import Selection

Ints = NDArray[np.int64]
_MAX_SUBSTITUTES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a worker sends: a batch, and what was wrong with it."""

    images: Tensor
    targets: Ints
    sample_ids: Ints
    weights: NDArray[np.float32]
    bad: list[BadSample]

    def batch(self) -> Batch:
        """The batch as the trainer wants it."""
        return Batch(
            images=self.images,
            targets=torch.from_numpy(self.targets),
            sample_ids=torch.from_numpy(self.sample_ids),
            weights=torch.from_numpy(self.weights),
        )


class TrainSteps(Dataset[Item]):
    """This rank's share of the batch at each flat step (epoch * batches_per_epoch + step)."""

    def __init__(
        self,
        index: ShardIndex,
        data: DataConfig,
        *,
        plan: Plan,
        selection: Selection,
        slots: slice,
        seed: int,
    ) -> None:
        self._reader = SampleReader(index, data)
        self._data = data
        self._plan = plan
        self._selection = selection
        self._slots = slots
        self._seed = seed

    def __getitem__(self, flat_step: int) -> Item:
        epoch, step = divmod(flat_step, self._plan.batches_per_epoch)
        sample_ids = self._sample_ids(epoch, step)
        images = _empty_images(len(sample_ids), self._data)
        pixels = _as_hwc(images)
        bad: list[BadSample] = []
        pending = np.arange(len(sample_ids))
        for attempt in range(1, _MAX_SUBSTITUTES):
            failed = self._reader.read_varied(
                pending, sample_ids[pending], pixels, augment=self._data.augment, seed=self._seed, epoch=epoch
            )
            if not failed:
                return self._item(images, sample_ids, bad)
            bad.extend(failed.values())
            pending = np.array(sorted(failed), np.int64)
            sample_ids[pending] = self._substitutes(epoch, step, attempt)[pending]
        raise DataError(f"{_MAX_SUBSTITUTES} images in a row cannot be used; the last is {bad[-1]}")

    def _item(self, images: Tensor, sample_ids: Ints, bad: list[BadSample]) -> Item:
        labels = self._reader.labels(sample_ids)
        usable = _label_is_usable(self._data, sample_ids)
        return Item(
            images=images,
            targets=np.where(usable, labels, NO_LABEL),
            sample_ids=sample_ids,
            weights=np.ones(len(sample_ids), np.float32),
            bad=bad,
        )

    def _sample_ids(self, epoch: int, step: int) -> Ints:
        return self._selection.ids(self._plan.batch(epoch, step, self._slots))

    def _substitutes(self, epoch: int, step: int, attempt: int) -> Ints:
        # The same slot of the batches that follow: a function of the plan alone, in shards this rank reads anyway.
        return self._sample_ids(epoch, (step + attempt) % self._plan.batches_per_epoch)


class EvalSteps(Dataset[Item]):
    """One rank's evaluation batches by number, every image whole."""

    def __init__(
        self, index: ShardIndex, data: DataConfig, batches: list[tuple[Ints, NDArray[np.float32]]]
    ) -> None:
        self._reader = SampleReader(index, data)
        self._data = data
        self._batches = batches

    def __getitem__(self, batch: int) -> Item:
        sample_ids, weights = self._batches[batch]
        real = np.flatnonzero(sample_ids >= 0)
        images = _empty_images(len(sample_ids), self._data)
        failed = self._reader.read_whole(real, sample_ids[real], _as_hwc(images))
        targets = np.full(len(sample_ids), NO_LABEL, np.int64)
        targets[real] = self._reader.labels(sample_ids[real])
        weights = weights.copy()
        weights[list(failed)] = 0.0
        return Item(
            images=images, targets=targets, sample_ids=sample_ids, weights=weights, bad=list(failed.values())
        )


def select_samples(index: ShardIndex, data: DataConfig) -> Selection:
    """The samples a run trains on: all, or those whose label may be used."""
    if data.unlabelled == "keep":
        return index.select_all()
    sample_ids = np.arange(index.num_samples, dtype=np.int64)
    return index.select(_label_is_usable(data, sample_ids) & (index.labels() != NO_LABEL))


def _label_is_usable(data: DataConfig, sample_ids: Ints) -> NDArray[np.bool_]:
    if data.label_fraction >= 1.0:
        return np.ones(len(sample_ids), bool)
    return to_unit(hash_words("label", data.label_seed, sample_ids)) < data.label_fraction


def _empty_images(batch: int, data: DataConfig) -> Tensor:
    # Allocated in shared memory from the start, so that a worker's batch reaches the training process without a copy;
    # zeroed by the kernel, so that padding is black.
    shape = (batch, data.image_size, data.image_size, data.channels)
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape).permute(0, 3, 1, 2)


def _as_hwc(images: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).numpy()
    return pixels
