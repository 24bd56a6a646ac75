"""What samples are called: an index knows where an image lies, and the tar's header before it knows its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.index import ShardIndex
from data_pipeline.scan import member_before
from data_pipeline.storage.files import ShardFiles

FORMATS = ("jpg", "png", "webp")
_HEADER = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleName:
    """A sample as people find it."""

    sample_id: int
    shard: str
    row: int
    """Its place in the shard's index."""
    key: str
    label: int
    """-1 where there is none."""
    class_name: str | None


class SampleNames:
    """Names of samples and their encoded images, by sample id."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._files = ShardFiles(index.shards)

    def of(self, sample_ids: NDArray[np.int64]) -> Iterator[SampleName]:
        """The names in the order of the ids."""
        for sample_id, shard, row in self._places(sample_ids):
            place = self._index.rows(shard)[row]
            label, classes = int(place["label"]), self._index.classes
            offset = int(place["offset"])
            header = self._files.read(self._index.shards[shard].url, offset - _HEADER, _HEADER)
            yield SampleName(
                sample_id=sample_id,
                shard=self._index.shards[shard].name,
                row=row,
                key=member_before(header) or f"row {row}",
                label=label,
                class_name=classes[label] if 0 <= label < len(classes) else None,
            )

    def images(self, sample_ids: NDArray[np.int64]) -> Iterator[bytes]:
        """Encoded images in the order of the ids."""
        for _, shard, row in self._places(sample_ids):
            place = self._index.rows(shard)[row]
            url = self._index.shards[shard].url
            yield self._files.read(url, int(place["offset"]), int(place["size"]))

    def close(self) -> None:
        """Closes the shards."""
        self._files.close()

    def _places(self, sample_ids: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        shards, rows = self._index.locate(sample_ids)
        return zip(sample_ids.tolist(), shards.tolist(), rows.tolist(), strict=True)
