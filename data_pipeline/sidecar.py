"""Sidecar: a record of fixed size beside each image as training varies it; written shard by shard, read by sample.

    FOLDER/pass-0003/000017.npy           a row for each sample of shard 17, as it is varied in pass 3
    FOLDER/pass-0003-copy-1/000017.npy    and as its second copy is (``data.repeats``)

The files are plain .npy of a structured type whose first field, `check`, is the CRC-32 of the rest of its row. A row of
zeros is an image that could not be read when the others were written.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.data import AugmentConfig
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import JoinedIndex
from data_pipeline.pixels.augment import varied_as
from data_pipeline.whole_file import write_whole

Ints = NDArray[np.int64]
Record = np.dtype[np.void]

CHECK = ("check", "<u4")
"""The first field of every record."""
_CHECK_BYTES = 4


class Part(NamedTuple):
    """What one file is about: the images of a shard, as one pass varies one copy of each."""

    of_pass: int
    copy: int
    shard: int

    def path(self, folder: Path) -> Path:
        """Where its records lie."""
        copy = f"-copy-{self.copy}" if self.copy else ""
        return folder / f"pass-{self.of_pass:04d}{copy}" / f"{self.shard:06d}.npy"


class Sidecar:
    """The records of an index's images; whoever holds it may be sent to another process."""

    def __init__(
        self,
        folder: Path,
        index: ShardIndex,
        record: Record,
        *,
        augment: AugmentConfig,
        again: str,
        passes: Sequence[int],
        further: str,
    ) -> None:
        """`again` is a command that writes what is missing of so many `passes` over each corpus, `further` one more."""
        self._folder = folder
        self._index = index
        self._record = record
        self._augment = augment
        self._again = again
        self._passes = _by_shard(index, passes)
        self._further = further

    @property
    def record_size(self) -> int:
        """Bytes beside each image."""
        return int(self._record.itemsize)

    def read(self, sample_ids: Ints, passes: Ints, copies: Ints, out: NDArray[np.uint8]) -> None:
        """Puts the record of each image into `out` [n, record_size]; DataError naming the file where one is missing."""
        shards, rows = self._index.locate(sample_ids)
        varied = varied_as(self._augment, passes)
        keys = (varied * (copies.max(initial=0) + 1) + copies) * len(self._index.shards) + shards
        _, places, which = np.unique(keys, return_index=True, return_inverse=True)
        parts = [Part(*map(int, (varied[place], copies[place], shards[place]))) for place in places]
        for number, part in enumerate(parts):
            here = np.flatnonzero(which == number)
            out[here] = self._rows(part)[rows[here]]
        wrong = np.flatnonzero(_checksums(out) != out[:, :_CHECK_BYTES].copy().view("<u4")[:, 0])
        if len(wrong):
            place = int(wrong[0])
            raise self._fault(parts[int(which[place])], int(rows[place]), out[place])

    def _rows(self, part: Part) -> NDArray[np.uint8]:
        path = part.path(self._folder)
        try:
            return _map_rows(path, int(self._index.lengths[part.shard]), self._record)
        except FileNotFoundError:
            raise DataError(self._absence(part, path)) from None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{str(path)!r} is damaged ({error}); delete it, and write it again with: {self._again}"
            ) from error

    def _absence(self, part: Part, path: Path) -> str:
        if part.of_pass < self._passes[part.shard]:
            return f"{str(path)!r} is missing; write it with: {self._again}"
        return (
            f"{str(path)!r} is missing: the run goes on for as many batches as it left out after a rollback, into a "
            f"pass that was never written; write that too with: {self._further}\nThen start the run again: it resumes"
        )

    def _fault(self, part: Part, row: int, record: NDArray[np.uint8]) -> DataError:
        path, shard = part.path(self._folder), self._index.shards[part.shard].name
        if not record.any():
            return DataError(
                f"{str(path)!r} says nothing about image {row} of shard {shard!r}, which could not be read when it was "
                f"written; delete the file, and write it again with: {self._again}"
            )
        return DataError(
            f"{str(path)!r} is damaged: what it says of image {row} of shard {shard!r} has not the checksum written "
            f"beside it; delete the file, and write it again with: {self._again}"
        )


def write_records(path: Path, rows: NDArray[np.void], *, present: NDArray[np.bool_]) -> None:
    """Writes one part's file, whole or not at all; of what is not `present` there is no record."""
    rows = rows.copy()
    rows[~present] = np.zeros((), rows.dtype)
    content = rows.view(np.uint8).reshape(len(rows), -1)
    rows["check"][present] = _checksums(content)[present]
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.getvalue())


def parts_of(index: ShardIndex, *, passes: Sequence[int], copies: int) -> list[Part]:
    """All parts, pass after pass; `passes` are those of each corpus of the index. Empty shards have none."""
    by_shard = _by_shard(index, passes)
    shards = np.flatnonzero(index.lengths)
    return [
        Part(of_pass, copy, shard)
        for of_pass in range(max(passes))
        for copy in range(copies)
        for shard in shards[by_shard[shards] > of_pass].tolist()
    ]


def _by_shard(index: ShardIndex, passes: Sequence[int]) -> Ints:
    """For each shard the passes over its corpus."""
    members = index.members if isinstance(index, JoinedIndex) else (index,)
    return np.repeat(np.array(passes, np.int64), [len(member.shards) for member in members])


def _checksums(records: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Of each row, without its first field."""
    content, size = records.data.cast("B"), records.shape[1]
    starts = range(0, records.size, size)
    return np.array([zlib.crc32(content[start + _CHECK_BYTES : start + size]) for start in starts], np.uint32)


# Each mapping holds a file descriptor, and the index and the open shards hold as many each; the usual limit is 1,024.
@lru_cache(maxsize=256)
def _map_rows(path: Path, num_rows: int, record: Record) -> NDArray[np.uint8]:
    with open(path, "rb") as file:
        # Rows are read in random order: from a network file system page by page, unless the whole file is asked for.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if rows.dtype != record or rows.shape != (num_rows,):
        raise ValueError(
            f"it has {rows.shape} rows of {rows.dtype.itemsize} bytes, not {num_rows} of {record.itemsize}"
        )
    return rows.view(np.uint8).reshape(num_rows, record.itemsize)
