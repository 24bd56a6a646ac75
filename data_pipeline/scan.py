"""One pass over a tar: member headers -> where each sample's image lies and what its label is.

Keys follow WebDataset: the folder, and the file name up to its first dot; a sample's members are adjacent.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError

SAMPLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("format", "u1")])
"""A row of a shard's index: where the image begins in the uncompressed tar, its size, label (-1: none), format."""

SUFFIXES = {"jpg": 0, "jpeg": 0, "png": 1, "webp": 2}
"""Suffixes of image members -> format number."""

NO_LABEL = -1
_BLOCK = 512
_MAX_LABEL_BYTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The folder, and the file name up to its first dot."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def suffix(self) -> str:
        """What follows the first dot of the file name, in lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedShard:
    """What a tar holds."""

    rows: NDArray[np.void]
    """SAMPLE rows in tar order."""
    keys: tuple[str, ...]


def scan_shard(path: Path, *, name: str) -> ScannedShard:
    """The samples of an uncompressed tar; DataError with shard `name` and key where it is not in order."""
    rows: list[tuple[int, int, int, int]] = []
    keys: list[str] = []
    seen: set[str] = set()
    with _mapped(path, name) as content:
        for key, members in _group(list_members(content, name=name)):
            if key in seen:
                raise DataError(
                    f"shard {name!r}: key {key!r} occurs twice, not side by side; a sample's files must be "
                    "adjacent and keys unique: build the shard again"
                )
            seen.add(key)
            keys.append(key)
            rows.append(_row(content, key, members, name))
    if not rows:
        raise DataError(f"shard {name!r} holds no samples; remove it, or build it again")
    return ScannedShard(
        rows=_with_consistent_labels(np.array(rows, dtype=SAMPLE), keys, name), keys=tuple(keys)
    )


def list_members(content: mmap.mmap | bytes, *, name: str) -> Iterator[Member]:
    """Regular files of a tar in order; DataError where it ends before its end marker or a header is damaged."""
    position, long_name = 0, None
    while True:
        header = content[position : position + _BLOCK]
        if len(header) < _BLOCK:
            raise DataError(
                f"shard {name!r} is truncated: no end marker at byte {position}; copy or build it again"
            )
        if not any(header):
            return
        size = _checked_size(header, name, position)
        start, kind = position + _BLOCK, header[156:157]
        if start + size > len(content):
            raise DataError(
                f"shard {name!r} is truncated: {_field(header[:100])!r} ends at byte {start + size} and the file "
                f"at {len(content)}; copy or build it again"
            )
        if kind == b"L":  # GNU: the next member's name
            long_name = _field(content[start : start + size])
        elif kind == b"x":  # POSIX: attributes of the next member
            long_name = _pax_path(content[start : start + size]) or long_name
        else:
            if kind in (b"0", b"\0"):
                yield Member(name=long_name or _header_name(header), offset=start, size=size)
            long_name = None
        position = start + -(-size // _BLOCK) * _BLOCK


def member_before(header: bytes) -> str:
    """The key in the tar header that precedes an image: the name of a sample known by its offset."""
    return Member(name=_header_name(header), offset=0, size=0).key


def _mapped(path: Path, name: str) -> mmap.mmap:
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            raise DataError(f"shard {name!r} is empty; copy or build it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _group(members: Iterator[Member]) -> Iterator[tuple[str, list[Member]]]:
    group: list[Member] = []
    for member in members:
        if member.name.rpartition("/")[2].startswith(
            (".", "__")
        ):  # macOS leftovers; WebDataset's own metadata
            continue
        if group and member.key != group[0].key:
            yield group[0].key, group
            group = []
        group.append(member)
    if group:
        yield group[0].key, group


def _row(content: mmap.mmap, key: str, members: list[Member], name: str) -> tuple[int, int, int, int]:
    by_suffix = {member.suffix: member for member in members}
    if len(by_suffix) < len(members):
        raise DataError(f"shard {name!r}: key {key!r} has two files of one suffix; build the shard again")
    image = next((by_suffix[suffix] for suffix in SUFFIXES if suffix in by_suffix), None)
    if image is None:
        raise DataError(
            f"shard {name!r}: key {key!r} has no image (it has {sorted(by_suffix)}); allowed are "
            f"{sorted(SUFFIXES)}, after the first dot of the name"
        )
    label = NO_LABEL
    if (written := by_suffix.get("cls")) is not None:
        label = _parse_label(
            content[written.offset : written.offset + min(written.size, _MAX_LABEL_BYTES)], key, name
        )
    return image.offset, image.size, label, SUFFIXES[image.suffix]


def _parse_label(text: bytes, key: str, name: str) -> int:
    stripped = text.strip()
    if not stripped.isdigit() or int(stripped) > np.iinfo(np.int32).max:
        raise DataError(
            f"shard {name!r}: key {key!r}: .cls holds {stripped!r}; write a class number as text, from 0 on"
        )
    return int(stripped)


def _with_consistent_labels(rows: NDArray[np.void], keys: list[str], name: str) -> NDArray[np.void]:
    missing = rows["label"] == NO_LABEL
    if missing.any() and not missing.all():
        key = keys[int(missing.argmax())]
        raise DataError(
            f"shard {name!r}: key {key!r} has no .cls, while others have one; label all samples or none"
        )
    return rows


def _checked_size(header: bytes, name: str, position: int) -> int:
    try:
        stored = int(_field(header[148:156]).strip() or "0", 8)
        size = _number(header[124:136])
    except ValueError as error:
        raise DataError(
            f"shard {name!r} is no tar, or damaged at byte {position}; copy or build it again"
        ) from error
    if stored != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise DataError(f"shard {name!r} is no tar, or damaged at byte {position}; copy or build it again")
    return size


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256 for sizes of 8 GiB and more
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _header_name(header: bytes) -> str:
    name, prefix = _field(header[:100]), _field(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _pax_path(records: bytes) -> str | None:
    for record in records.split(b"\n"):  # "27 path=folder/name.jpg"
        keyword, equals, value = record.partition(b" ")[2].partition(b"=")
        if equals and keyword == b"path":
            return value.decode("utf-8", "replace")
    return None


def _field(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
