"""A corpus, read by all ranks at once as training does: every index readable, images that decode, and how fast."""

from __future__ import annotations

import os
import time

import numpy as np

from configs.data import DataConfig
from configs.finding import Finding
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.ranged_file import RangedFile
from data_pipeline.reader import SampleReader, open_files
from data_pipeline.storage.source import is_remote, local_path
from engine.doctor.staff import Staff

_READ_S = 3.0
_PIECE = 4 << 20
_IMAGES = 8  # decoded by each rank
_SIDE = 64


def check_corpus(staff: Staff, location: str) -> Finding:
    """All ranks read pieces of different shards for a few seconds, past the page cache, and decode some images."""
    answers = staff.ask(lambda: _read(location, staff.world.rank, staff.world.size))
    samples, rates, image_bytes, problems = zip(*answers, strict=True)
    if any(problems):
        return Finding(
            check="data",
            level="fail",
            said=f"{location!r}: {next(filter(None, problems))}",
            advice=f"see what is wrong with: mirada data verify {location} --deep",
        )
    if len(set(samples)) > 1:
        return Finding(
            check="data",
            level="fail",
            said=f"{location!r} has not the same number of samples on all nodes ({sorted(set(samples))})",
            advice="the nodes see different folders under this name: put the data on a shared file system",
        )
    total = sum(rates)
    images_per_s = total / max(image_bytes)
    return Finding(
        check="data",
        said=f"{location!r}: {samples[0]:,} samples, all ranks together read {total / 1e6:,.0f} MB/s, which are about "
        f"{images_per_s:,.0f} images/s",
    )


def _read(location: str, rank: int, num_ranks: int) -> tuple[int, float, float, str]:
    """Number of samples, bytes/s, bytes of a mean image, and the first problem with an image."""
    index = open_index(location)
    mean_bytes = float(np.mean([index.rows(shard)["size"].mean() for shard in _some(index, rank, num_ranks)]))
    problem = _decode(index, rank, num_ranks)
    return index.num_samples, _read_rate(index, rank, num_ranks), mean_bytes, problem


def _some(index: ShardIndex, rank: int, num_ranks: int) -> list[int]:
    """A few shards that hold something, other ones for each rank while there are enough."""
    filled = [shard for shard, length in enumerate(index.lengths) if length]
    return filled[rank::num_ranks][:4] or filled[:1]


def _read_rate(index: ShardIndex, rank: int, num_ranks: int) -> float:
    """Bytes per second of reading on in this rank's shards until the time is up or they end."""
    start, num_bytes = time.perf_counter(), 0
    for number in _some(index, rank, num_ranks):
        shard = index.shards[number]
        for offset in range(0, shard.num_bytes, _PIECE):
            end = min(offset + _PIECE, shard.num_bytes)
            num_bytes += len(_piece(shard.url, offset, end, shard.num_bytes))
            if time.perf_counter() - start > _READ_S:
                return num_bytes / (time.perf_counter() - start)
    return num_bytes / max(time.perf_counter() - start, 1e-9)


def _piece(url: str, start: int, end: int, size: int) -> bytes:
    if is_remote(url):
        return RangedFile(url, size)[start:end]
    descriptor = os.open(local_path(url), os.O_RDONLY)
    try:
        # What another run has left in memory says nothing about the file system.
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, end - start, start)
    finally:
        os.close(descriptor)


def _decode(index: ShardIndex, rank: int, num_ranks: int) -> str:
    """Decodes a few images of this rank's first shard (a remote one goes into the cache); the first bad one by name."""
    data = DataConfig(train=str(index.folder), image_size=_SIDE)
    shard = _some(index, rank, num_ranks)[0]
    first, last = index.starts[shard], index.starts[shard + 1] - 1
    ids = np.unique(np.linspace(first, last, num=_IMAGES, dtype=np.int64))
    images = np.empty((len(ids), _SIDE, _SIDE, data.channels), np.uint8)
    bad = SampleReader(index, data, open_files(index, data)).read_whole(np.arange(len(ids)), ids, images)
    return next((f"{sample.shard} {sample.key}: {sample.reason}" for sample in bad.values()), "")
