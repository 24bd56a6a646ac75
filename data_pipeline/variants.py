"""VariantLoader: all images of whole shards, varied as training will vary them: what a teacher is asked about before.

Batches are cut from one part (shard, pass, copy) at a time, so a part has the same batches whoever works on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from configs.data import DataConfig
from data_pipeline.bad import BadSamples
from data_pipeline.batch import Batch
from data_pipeline.index import ShardIndex
from data_pipeline.packet import Packet, Packets
from data_pipeline.reader import SampleReader
from data_pipeline.scan import NO_LABEL
from data_pipeline.sidecar import Part
from data_pipeline.workers import Workers

Ints = NDArray[np.int64]


class VariantLoader:
    """One rank's parts, decoded by worker processes ahead of time."""

    def __init__(
        self, index: ShardIndex, data: DataConfig, parts: Sequence[Part], *, batch_size: int, seed: int
    ) -> None:
        steps = _VariantSteps(index, data, parts, batch_size=batch_size, seed=seed)
        self._num_batches = len(steps)
        self._bad = BadSamples(num_samples=index.num_samples, max_fraction=data.max_bad_fraction)
        self._workers = Workers(
            steps,
            num_workers=min(data.workers, self._num_batches),
            prefetch=data.prefetch,
            persistent=False,
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches of each part in order; an image that cannot be decoded keeps its place with weight 0."""
        for packet in self._workers.items(0, self._num_batches):
            self._bad.add(packet.bad)
            yield packet.batch()

    @property
    def bad_samples(self) -> dict[str, int]:
        """Bad samples met so far, by reason."""
        return self._bad.counts()


class _VariantSteps(Dataset[Packet]):
    def __init__(
        self, index: ShardIndex, data: DataConfig, parts: Sequence[Part], *, batch_size: int, seed: int
    ) -> None:
        self._index = index
        self._data = data
        self._seed = seed
        self._batch_size = batch_size
        self._parts = np.array(parts, np.int64).reshape(-1, len(Part._fields))
        lengths = index.lengths[self._parts[:, Part._fields.index("shard")]]
        self._ends = np.cumsum(-(-lengths // batch_size))
        self._reader = SampleReader(index, data)
        self._packets = Packets()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Packet:
        place = int(np.searchsorted(self._ends, number, side="right"))
        part = Part(*self._parts[place].tolist())
        before = int(self._ends[place - 1]) if place else 0
        first = int(self._index.starts[part.shard]) + (number - before) * self._batch_size
        stop = min(first + self._batch_size, int(self._index.starts[part.shard + 1]))
        return self._read(part, np.arange(first, stop))

    def _read(self, part: Part, sample_ids: Ints) -> Packet:
        count, size = len(sample_ids), self._data.image_size
        packet = self._packets.new([(count, size, size, self._data.channels)])
        pixels = packet.pixels(0).numpy()
        failed = self._reader.read_varied(
            np.arange(count),
            sample_ids,
            pixels,
            augment=self._data.augment,
            seed=self._seed,
            epoch=part.of_pass,
            copy=part.copy,
        )
        packet.bad.extend(failed.values())
        pixels[list(failed)] = 0
        packet.sample_ids.numpy()[:] = sample_ids
        packet.targets.numpy()[:] = NO_LABEL
        packet.epochs.numpy()[:], packet.copies.numpy()[:] = part.of_pass, part.copy
        packet.weights.numpy()[:] = 1.0
        packet.weights.numpy()[list(failed)] = 0.0
        return packet
