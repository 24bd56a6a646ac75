"""ShardCheck: all that can be wrong with one shard, looked for in one pass over it."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.packing.record import suffix_of
from data_pipeline.pixels.decode import DecodeError, decode
from data_pipeline.scan import SAMPLE, SUFFIXES, Member, list_members
from data_pipeline.shard import Shard, checksum
from data_pipeline.storage.source import is_remote, local_shard

_COPY = "copy the shard again from where it came, or build it again"
_REINDEX = "if the shard is right and its index old, run: mirada data index"
_REBUILD = "build the shard again"
_KNOWN_SUFFIXES = frozenset({*SUFFIXES, "cls", "txt", "json"})
_MAX_LABEL_BYTES = 20
_HEAD_BYTES = 16


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
    num_classes: int
    deep: bool
    """Decode every image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """The members of one key that lie side by side."""

    key: str
    members: tuple[Member, ...]

    def member(self, *suffixes: str) -> Member | None:
        """The first member with one of these suffixes, in the order of the suffixes."""
        by_suffix = {member.suffix: member for member in self.members}
        return next((by_suffix[suffix] for suffix in suffixes if suffix in by_suffix), None)


def check_shard(check: ShardCheck, on_sample: Callable[[], None]) -> ShardReport:
    """Reads a whole shard; faults are reported, never raised."""
    name, faults, keys = check.shard.name, list[Fault](), list[str]()
    try:
        path = local_shard(check.shard.url)
        faults += _file_faults(check.shard)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = []
            for sample in _samples(list_members(content, name=name)):
                keys.append(sample.key)
                faults += _sample_faults(check, sample, content)
                found.append(_row(sample, content))
                on_sample()
        faults += _key_faults(name, keys)
        faults += _row_faults(check, keys, np.array(found, dtype=SAMPLE))
    except (DataError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        faults.append(_from_error(name, error))
    return ShardReport(
        name=name,
        num_samples=check.shard.num_samples,
        num_bytes=check.shard.num_bytes,
        faults=tuple(faults),
        key_hashes=np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64),
    )


def _file_faults(shard: Shard) -> Iterator[Fault]:
    """The file as it lies, against size and checksum in the index."""
    if is_remote(shard.url):
        return
    path = Path(shard.url)
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        problem = f"it has {num_bytes} bytes, its index says {shard.num_bytes}"
        yield Fault(shard=shard.name, key=None, problem=problem, remedy=f"{_COPY}; {_REINDEX}")
    elif checksum(path) != shard.digest:
        problem = "its checksum is not the one in its index: bytes changed"
        yield Fault(shard=shard.name, key=None, problem=problem, remedy=f"{_COPY}; {_REINDEX}")


def _samples(members: Iterator[Member]) -> Iterator[_Sample]:
    visible = (member for member in members if not member.name.rpartition("/")[2].startswith((".", "__")))
    for key, group in groupby(visible, key=lambda member: member.key):
        yield _Sample(key=key, members=tuple(group))


def _sample_faults(check: ShardCheck, sample: _Sample, content: mmap.mmap) -> Iterator[Fault]:
    """One sample's members, label and image."""
    problems = [*_member_problems(sample), *_label_problems(sample, content, check)]
    image = sample.member(*SUFFIXES)
    if image is not None:
        problems += _image_problems(image, content, deep=check.deep)
    for problem in problems:
        yield Fault(shard=check.shard.name, key=sample.key, problem=problem, remedy=_REBUILD)


def _member_problems(sample: _Sample) -> Iterator[str]:
    suffixes = [member.suffix for member in sample.members]
    for suffix in sorted({suffix for suffix in suffixes if suffixes.count(suffix) > 1}):
        yield f"two files of suffix {suffix!r}"
    if sample.member(*SUFFIXES) is None:
        yield f"no image among {sorted(suffixes)}"
    for suffix in suffixes:
        if "." in suffix and suffix.rpartition(".")[2] in _KNOWN_SUFFIXES:
            yield f"the file name holds a dot before {suffix!r}: readers end the key at the first dot"


def _label_problems(sample: _Sample, content: mmap.mmap, check: ShardCheck) -> Iterator[str]:
    written = sample.member("cls")
    if written is None:
        if check.num_classes:
            yield "no .cls, while the index has a class map"
        return
    text = _label_text(written, content)
    if not text.isdigit():
        yield f".cls holds {text!r}, which is no class number"
    elif int(text) >= check.num_classes:
        yield f"label {int(text)} is outside the class map of {check.num_classes} classes"


def _image_problems(image: Member, content: mmap.mmap, *, deep: bool) -> Iterator[str]:
    """What kind of image it is by its first bytes, and with `deep` whether it decodes."""
    encoded = content[image.offset : image.offset + (image.size if deep else min(image.size, _HEAD_BYTES))]
    kind = suffix_of(encoded)
    if kind is None:
        yield f"{image.suffix!r} file is no image ({image.size} bytes)"
    elif SUFFIXES[kind] != SUFFIXES[image.suffix]:
        yield f"{image.suffix!r} file is {kind!r} by content"
    elif deep:
        try:
            decode(encoded, channels=3)
        except DecodeError as error:
            yield f"image does not decode: {error.reason}"


def _row(sample: _Sample, content: mmap.mmap) -> tuple[int, int, int, int]:
    """The sample as an index row; fields that cannot be had are -1 or 0, and reported by others."""
    image, written = sample.member(*SUFFIXES), sample.member("cls")
    text = _label_text(written, content) if written else b""
    label = int(text) if text.isdigit() and int(text) <= np.iinfo(np.int32).max else -1
    return (image.offset, image.size, label, SUFFIXES[image.suffix]) if image else (0, 0, label, 0)


def _label_text(written: Member, content: mmap.mmap) -> bytes:
    return content[written.offset : written.offset + min(written.size, _MAX_LABEL_BYTES)].strip()


def _key_faults(name: str, keys: list[str]) -> Iterator[Fault]:
    for key, count in Counter(keys).items():
        if count > 1:
            problem = f"its files stand in {count} places: one sample is torn apart, or the key is used twice"
            yield Fault(shard=name, key=key, problem=problem, remedy=_REBUILD)


def _row_faults(check: ShardCheck, keys: list[str], found: NDArray[np.void]) -> Iterator[Fault]:
    """Index rows against the tar; the first difference is named, the others are counted."""
    name, rows = check.shard.name, check.rows
    if len(found) != len(rows):
        problem = f"it has {len(found)} samples, its index says {len(rows)}"
        yield Fault(shard=name, key=None, problem=problem, remedy=f"{_COPY}; {_REINDEX}")
        return
    wrong = np.flatnonzero(found != rows)
    if wrong.size:
        row = int(wrong[0])
        problem = f"its index says {rows[row]} (offset, size, label, format) and the tar {found[row]}"
        more = f", and so for {wrong.size - 1} more samples" if wrong.size > 1 else ""
        yield Fault(shard=name, key=keys[row], problem=problem + more, remedy=_REINDEX)


def _from_error(name: str, error: Exception) -> Fault:
    """What reading raised, as a fault: its message ends in what to do."""
    problem, _, remedy = str(error).removeprefix(f"shard {name!r} ").rpartition("; ")
    return Fault(shard=name, key=None, problem=problem or str(error), remedy=remedy if problem else _COPY)
