"""ShardCheck: all that can be wrong with one shard, looked for in one pass over it."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.inspection.sample_check import SampleCheck, Stray, list_samples
from data_pipeline.scan import SAMPLE, Member, list_members, member_before
from data_pipeline.shard import Shard
from data_pipeline.storage.files import local_shard
from data_pipeline.storage.source import is_remote

_COPY = "copy the shard again from where it came, or build it again"
_REINDEX = "if the shard is right and its index old, run: mirada data index"
_REBUILD = "build the shard again"
_HEADER = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong, where, and what to do about it."""

    shard: str
    key: str | None
    """None when the fault is the shard's own."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.shard}: key {self.key!r}" if self.key is not None else self.shard
        return f"{where}: {self.problem}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What was found in one shard."""

    name: str
    num_samples: int
    """As the index has it."""
    num_bytes: int
    faults: tuple[Fault, ...]
    key_hashes: NDArray[np.uint64]
    """One per sample in tar order, to find keys that two shards share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCheck:
    """A shard, and what its index says about it."""

    shard: Shard
    rows: NDArray[np.void]
    excluded: frozenset[int]
    """Offsets of the images that the index leaves out on purpose."""
    num_classes: int
    deep: bool
    """Decode every image."""


@dataclass(slots=True, kw_only=True)
class _Walked:
    """What was met on the way through a tar, as far as it can be read."""

    keys: list[str]
    rows: list[tuple[int, int, int, int]]
    faults: list[Fault]
    last_key: str | None = None
    """Of the last file that was met, whether or not its sample is complete."""


def check_shard(check: ShardCheck, on_sample: Callable[[], None]) -> ShardReport:
    """Reads a whole shard; faults are reported, never raised."""
    name, faults, walked = check.shard.name, list[Fault](), _Walked(keys=[], rows=[], faults=[])
    try:
        path = _fetched(check.shard)
        faults += _file_faults(check.shard)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                # Of a shard whose bytes changed all images are decoded: that may say which.
                _walk(check, content, walked, deep=check.deep or bool(faults), on_sample=on_sample)
                faults += _row_faults(check, walked)
            except DataError as error:
                faults.append(_breaking_off(check, walked, content, error))
    except (DataError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        faults.append(_from_error(name, error))
    return ShardReport(
        name=name,
        num_samples=check.shard.num_samples,
        num_bytes=check.shard.num_bytes,
        faults=(*faults, *walked.faults, *_key_faults(name, walked.keys)),
        key_hashes=np.array(
            [xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape")) for key in walked.keys],
            dtype=np.uint64,
        ),
    )


def list_keys(check: ShardCheck) -> list[str]:
    """Keys in the order in which `check_shard` hashes them, as far as the tar can be read."""
    keys: list[str] = []
    with (
        open(_fetched(check.shard), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        suppress(DataError),
    ):
        for sample in list_samples(list_members(content, name=check.shard.name)):
            if not isinstance(sample, Stray) and sample.row(content)[0] not in check.excluded:
                keys.append(sample.key)
    return keys


def _fetched(shard: Shard) -> Path:
    """Where its bytes lie: a remote one's must be what its index says when they come, a local one's are looked at."""
    return local_shard(shard.url, shard if is_remote(shard.url) else None)


def _file_faults(shard: Shard) -> Iterator[Fault]:
    """The file as it lies, against size and checksum in the index; a remote one was checked when it was fetched."""
    if is_remote(shard.url):
        return
    path = Path(shard.url)
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        problem = f"it has {num_bytes} bytes, its index says {shard.num_bytes}"
        yield Fault(shard=shard.name, key=None, problem=problem, remedy=f"{_COPY}; {_REINDEX}")
    elif not shard.matches(path):
        problem = "its checksum is not the one in its index: bytes changed"
        yield Fault(shard=shard.name, key=None, problem=problem, remedy=f"{_COPY}; {_REINDEX}")


def _walk(
    check: ShardCheck, content: mmap.mmap, walked: _Walked, *, deep: bool, on_sample: Callable[[], None]
) -> None:
    """Fills `walked` sample by sample, so that it holds what there was when a damaged tar breaks off."""
    name = check.shard.name
    against = SampleCheck(num_classes=check.num_classes, deep=deep)
    for sample in list_samples(_noted(list_members(content, name=name), walked)):
        if isinstance(sample, Stray):
            walked.faults.append(
                Fault(shard=name, key=sample.key, problem=sample.problem, remedy=f"rename it and {_REBUILD}")
            )
            continue
        row = sample.row(content)
        if row[0] in check.excluded:
            continue
        walked.keys.append(sample.key)
        walked.rows.append(row)
        for problem in against.problems(sample, content):
            walked.faults.append(Fault(shard=name, key=sample.key, problem=problem, remedy=_REBUILD))
        on_sample()


def _key_faults(name: str, keys: list[str]) -> Iterator[Fault]:
    for key, count in Counter(keys).items():
        if count > 1:
            problem = f"its files stand in {count} places: one sample is torn apart, or the key is used twice"
            yield Fault(shard=name, key=key, problem=problem, remedy=_REBUILD)


def _row_faults(check: ShardCheck, walked: _Walked) -> Iterator[Fault]:
    """Index rows against the tar; the first difference is named, the others are counted."""
    name, rows, found = check.shard.name, check.rows, np.array(walked.rows, dtype=SAMPLE)
    common = min(len(found), len(rows))
    wrong = np.flatnonzero(found[:common] != rows[:common])
    row = int(wrong[0]) if wrong.size else common
    key = walked.keys[row] if row < len(found) else None
    if len(found) != len(rows):
        problem = f"it has {len(found)} samples, its index says {len(rows)}"
        if key is None and walked.keys:
            problem += f"; what the index has after key {walked.keys[-1]!r} is missing"
        elif key is not None:
            problem += "; from this key on they differ"
        yield Fault(shard=name, key=key, problem=problem, remedy=f"{_COPY}; {_REINDEX}")
    elif wrong.size:
        problem = f"its index says {rows[row]} (offset, size, label, format) and the tar {found[row]}"
        more = f", and so for {wrong.size - 1} more samples" if wrong.size > 1 else ""
        yield Fault(shard=name, key=key, problem=problem + more, remedy=f"{_COPY}; {_REINDEX}")


def _breaking_off(check: ShardCheck, walked: _Walked, content: mmap.mmap, error: DataError) -> Fault:
    """Where a tar cannot be read on: what is wrong, and which samples of its index are gone."""
    fault = _from_error(check.shard.name, error)
    offsets = check.rows["offset"]
    num_lost = int((offsets + check.rows["size"] > len(content)).sum()) or len(offsets) - len(walked.keys)
    if num_lost <= 0:
        return fault
    first = len(offsets) - num_lost
    before = _key_at(content, int(offsets[first - 1])) if first else None
    # Where not even the name of the first lost image is left, its label's may be: the last one that was met.
    key = _key_at(content, int(offsets[first])) or (walked.last_key if walked.last_key != before else None)
    after = f" after key {before!r}" if key is None and before is not None else ""
    problem = f"{fault.problem}; {num_lost} of {len(offsets)} samples{after} cannot be read"
    return Fault(shard=fault.shard, key=key, problem=problem, remedy=fault.remedy)


def _key_at(content: mmap.mmap, offset: int) -> str | None:
    """The key in the header before an image; None where the file ends before it."""
    return member_before(content[offset - _HEADER : offset]) if offset <= len(content) else None


def _noted(members: Iterator[Member], walked: _Walked) -> Iterator[Member]:
    for member in members:
        walked.last_key = member.key
        yield member


def _from_error(name: str, error: Exception) -> Fault:
    """What reading raised, as a fault: its message ends in what to do."""
    problem, _, remedy = str(error).removeprefix(f"shard {name!r} ").rpartition("; ")
    return Fault(shard=name, key=None, problem=problem or str(error), remedy=remedy if problem else _COPY)
