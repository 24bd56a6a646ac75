"""Perceptual hashes of the images of an index, kept beside it for the next time.

An image's hash is ImageHash's 64-bit pHash of its grey pixels: half of its bits are set, and pictures that look alike
differ in few of them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import imagehash
import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.index import ShardIndex
from data_pipeline.packing.shard_pool import run_over_shards
from data_pipeline.pixels.decode import DecodeError, Pixels, decode, limit_threads
from data_pipeline.shard import Shard
from data_pipeline.storage.files import ShardFiles
from data_pipeline.whole_file import write_whole

log = logging.getLogger(__name__)

Hashes = NDArray[np.uint64]
Made = TypeVar("Made")
NO_HASH = 0
"""Instead of the hash of an image that cannot be decoded, or shows nothing (one colour)."""

THUMBNAIL = 32
"""Side of the grey square by whose pixels two images are compared."""

_KIND = "phash-64"
_PACKAGED = Path(__file__).resolve().parents[1]
_SAMPLES_PER_WORKER = 2_000
"""Below this, another process costs more than it brings."""
_REDUCED = 64
"""Larger images are first reduced to squares of this side by area averages, which costs less than Lanczos."""
_LEAST_BITS_SET = 24
"""pHash compares 64 coefficients with their median, so a picture with structure has 32 bits set, and a blank one 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    shard: Shard
    rows: NDArray[np.void]


def hash_images(index: ShardIndex, *, num_workers: int = 1) -> Hashes:
    """The hash of every sample; shards hashed before are read from `SHARD.phash.npy` beside the index."""
    known = [_load(index, number) for number in range(len(index.shards))]
    missing = [number for number, hashes in enumerate(known) if hashes is None]
    jobs = [_Job(shard=index.shards[number], rows=np.array(index.rows(number))) for number in missing]
    made = _over_shards(_hash_shard, jobs, num_workers=num_workers, title=f"hashing {index.name}")
    for number, hashes in zip(missing, made, strict=True):
        known[number] = hashes
        _save(index, number, hashes)
    return np.concatenate([hashes for hashes in known if hashes is not None])


def make_thumbnails(index: ShardIndex, sample_ids: NDArray[np.int64], *, num_workers: int = 1) -> Pixels:
    """[n, 32 * 32] grey pixels of these samples (in ascending order); black where one cannot be decoded."""
    shards, rows = index.locate(sample_ids)
    jobs = [
        _Job(shard=index.shards[number], rows=index.rows(number)[rows[shards == number]])
        for number in np.unique(shards).tolist()
    ]
    made = _over_shards(_thumbnail_shard, jobs, num_workers=num_workers, title=f"comparing {index.name}")
    return np.concatenate(made) if made else np.zeros((0, THUMBNAIL * THUMBNAIL), np.uint8)


def perceptual_hash(encoded: bytes) -> int:
    """The 64 bits of an encoded image's pHash; NO_HASH where there is nothing to compare."""
    try:
        grey = _reduced_grey(encoded)
    except DecodeError:
        return NO_HASH
    bits = imagehash.phash(Image.fromarray(grey)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big") if bits.sum() >= _LEAST_BITS_SET else NO_HASH


def _over_shards(
    work: Callable[[_Job, Callable[[], None]], Made], jobs: list[_Job], *, num_workers: int, title: str
) -> list[Made]:
    if not jobs:
        return []
    num_samples = sum(len(job.rows) for job in jobs)
    num_workers = min(num_workers, 1 + num_samples // _SAMPLES_PER_WORKER)
    return run_over_shards(work, jobs, num_workers=num_workers, title=title, num_samples=num_samples)


def _hash_shard(job: _Job, on_sample: Callable[[], None]) -> Hashes:
    limit_threads()
    files, hashes = ShardFiles([job.shard]), np.zeros(len(job.rows), np.uint64)
    for row, place in enumerate(job.rows):
        hashes[row] = perceptual_hash(files.read(job.shard.url, int(place["offset"]), int(place["size"])))
        on_sample()
    files.close()
    return hashes


def _thumbnail_shard(job: _Job, on_sample: Callable[[], None]) -> Pixels:
    limit_threads()
    files, thumbnails = ShardFiles([job.shard]), np.zeros((len(job.rows), THUMBNAIL, THUMBNAIL), np.uint8)
    for thumbnail, place in zip(thumbnails, job.rows, strict=True):
        try:
            grey = _reduced_grey(files.read(job.shard.url, int(place["offset"]), int(place["size"])))
        except DecodeError:
            continue
        shrinks = min(grey.shape) >= THUMBNAIL
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        thumbnail[:] = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=method)
        on_sample()
    files.close()
    return thumbnails.reshape(len(job.rows), -1)


def _reduced_grey(encoded: bytes) -> Pixels:
    grey = decode(encoded, channels=1)[:, :, 0]
    if min(grey.shape) <= _REDUCED:
        return np.ascontiguousarray(grey)
    return np.asarray(cv2.resize(grey, (_REDUCED, _REDUCED), interpolation=cv2.INTER_AREA), np.uint8)


def _load(index: ShardIndex, number: int) -> Hashes | None:
    """Hashes kept from before; None if there are none, or the shard or the rows have changed since."""
    try:
        words = np.load(_path(index, number), allow_pickle=False)
    except (OSError, ValueError):
        return None
    fits = words.dtype == np.uint64 and words.shape == (1 + index.shards[number].num_samples,)
    return words[1:] if fits and words[0] == _stamp(index, number) else None


def _save(index: ShardIndex, number: int, hashes: Hashes) -> None:
    path = _path(index, number)
    if path.resolve().is_relative_to(_PACKAGED):  # the sample ships with the package, and stays as it is
        return
    content = io.BytesIO()
    np.save(
        content, np.concatenate([np.array([_stamp(index, number)], np.uint64), hashes]), allow_pickle=False
    )
    try:
        write_whole(path, content.getvalue())
    except OSError as error:  # the index may lie where only others may write
        log.warning("the hashes of %s are not kept: %s", index.shards[number].name, error)


def _path(index: ShardIndex, number: int) -> Path:
    return index.folder / f"{index.shards[number].name}.phash.npy"


def _stamp(index: ShardIndex, number: int) -> int:
    """Ties hashes to what they are of: the first word of their file."""
    hasher = xxhash.xxh3_64(f"{_KIND} {index.shards[number].digest}".encode())
    hasher.update(index.rows(number)["offset"].tobytes())
    return hasher.intdigest()
