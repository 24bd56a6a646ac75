"""One pass over a tar: member headers -> where each sample's image lies and what its label is.

Keys follow WebDataset: the folder, and the file name up to its first dot; a sample's members are adjacent.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError, TarError
from data_pipeline.tar_header import (
    ATTRIBUTES,
    BLOCK,
    FILE_KINDS,
    FOLDER,
    LINKS,
    LONG_NAME,
    SHARED_ATTRIBUTES,
    TarHeader,
    header_name,
    parse_attributes,
    parse_header,
    parse_long_name,
)

SAMPLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("format", "u1")])
"""A row of a shard's index: where the image begins in the uncompressed tar, its size, label (-1: none), format."""

SUFFIXES = {"jpg": 0, "jpeg": 0, "png": 1, "webp": 2}
"""Suffixes of image members -> format number."""

MAX_IMAGE_BYTES = 256 << 20
MAX_BYTES = {**dict.fromkeys(SUFFIXES, MAX_IMAGE_BYTES), "cls": 64, "txt": 1 << 20, "json": 16 << 20}
"""Suffixes of the members that are read, and how many bytes they may have; all others are ignored and counted."""

NO_LABEL = -1
HEADERS_ONLY = "headers-"
"""Begins a digest that covers headers and labels, not the images."""

_MAX_ATTRIBUTE_BYTES = 1 << 20
_MAX_PADDING = 4 << 20
_MAX_LABEL = 2**31 - 1
_MAX_NAMED = 50
_MAX_NAME_LENGTH = 40
_REMEDY = "copy or build it again"


class Content(Protocol):
    """Bytes at an offset: a mapped file, bytes, or a remote file of which only the asked parts are fetched."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


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
    num_captions: int
    """Samples whose ``.txt`` is there and not empty."""
    ignored: Mapping[str, int]
    """Members that belong to no sample: how many by suffix, and links."""
    digest: str
    """HEADERS_ONLY and xxh3-128 of all headers and rows: changes when a member is added, moved, renamed or relabelled,
    and not when an image is replaced by another of the same size."""


def scan_shard(path: Path, *, name: str) -> ScannedShard:
    """The samples of an uncompressed tar; DataError with shard `name` and key where it is not in order."""
    with _mapped(path, name) as content:
        return scan_content(content, name=name)


def scan_content(content: Content, *, name: str) -> ScannedShard:
    """The same for a tar wherever it lies; of its members only labels are read."""
    rows: list[tuple[int, int, int, int]] = []
    keys: list[str] = []
    seen: set[str] = set()
    num_captions = 0
    walk = _Walk(content, name)
    for key, members in _group(walk):
        if key in seen:
            raise DataError(
                f"shard {name!r}: key {key!r} occurs twice, not side by side; a sample's files must be "
                "adjacent and keys unique: build the shard again"
            )
        seen.add(key)
        keys.append(key)
        rows.append(_row(content, key, members, name))
        num_captions += any(member.suffix == "txt" and member.size for member in members)
    if not rows:
        ignored = f" (ignored are {dict(walk.ignored)})" if walk.ignored else ""
        raise DataError(f"shard {name!r} holds no samples{ignored}; remove it, or build it again")
    table = _with_consistent_labels(np.array(rows, dtype=SAMPLE), keys, name)
    walk.hasher.update(table.tobytes())
    digest = HEADERS_ONLY + walk.hasher.hexdigest()
    return ScannedShard(
        rows=table,
        keys=tuple(keys),
        num_captions=num_captions,
        ignored=dict(walk.ignored),
        digest=digest,
    )


def list_members(content: Content, *, name: str) -> Iterator[Member]:
    """Regular files of a tar in order; TarError where it ends before its end marker or a header is damaged."""
    return iter(_Walk(content, name))


def member_before(header: bytes) -> str:
    """The key in the tar header that precedes an image: the name of a sample known by its offset."""
    return Member(name=header_name(header), offset=0, size=0).key


class _Walk:
    """Goes from header to header; what is passed over is counted, and all headers are hashed."""

    def __init__(self, content: Content, name: str) -> None:
        self._content = content
        self._name = name
        self.ignored: Counter[str] = Counter()
        self.hasher = xxhash.xxh3_128()

    def ignore(self, what: str) -> None:
        """Counts a member by its suffix or kind; the number of different names is bounded, whatever the tar says."""
        what = what[:_MAX_NAME_LENGTH] or "(no suffix)"
        known = what in self.ignored or len(self.ignored) < _MAX_NAMED
        self.ignored[what if known else "(other)"] += 1

    def __iter__(self) -> Iterator[Member]:
        position, long_name, attributes = 0, None, None
        while (header := self._header(position)) is not None:
            start, size = position + BLOCK, header.size
            if header.kind == LONG_NAME:
                if long_name is not None:
                    raise self._damage(position, "two names for one member")
                long_name = parse_long_name(self._read(start, size, position))
            elif header.kind in ATTRIBUTES:
                if attributes is not None:
                    raise self._damage(position, "attributes twice for one member")
                attributes = self._parsed_attributes(start, size, position)
            elif header.kind == SHARED_ATTRIBUTES:
                if self._parsed_attributes(start, size, position) != (None, None):
                    raise self._damage(position, "a name or size for all members")
            else:
                name, override = attributes or (None, None)
                size = size if override is None else override
                member = Member(name=name or long_name or header.name, offset=start, size=size)
                self._check_size(member, position)
                if self._is_file(header, member):
                    yield member
                long_name = attributes = None
            position = start + -(-size // BLOCK) * BLOCK
        self._check_end(position, pending=long_name is not None or attributes is not None)

    def _header(self, position: int) -> TarHeader | None:
        """The header at a position; None at the end marker."""
        block = self._content[position : position + BLOCK]
        if len(block) < BLOCK:
            raise self._fault(f"is truncated: no end marker at byte {position}")
        if not any(block):
            return None
        self.hasher.update(block)
        try:
            return parse_header(block)
        except ValueError as error:
            raise self._damage(position, str(error)) from error

    def _check_size(self, member: Member, position: int) -> None:
        end, limit = member.offset + member.size, MAX_BYTES.get(member.suffix)
        if end > len(self._content):
            raise self._fault(
                f"is truncated: {_shortened(member.name)!r} ends at byte {end} and the file at {len(self._content)}"
            )
        if limit is not None and member.size > limit:
            raise TarError(
                f"shard {self._name!r}: {_shortened(member.name)!r} at byte {position} has {member.size:,} bytes; "
                f"'.{member.suffix}' files may have {limit:,}: build the shard again without it"
            )

    def _is_file(self, header: TarHeader, member: Member) -> bool:
        if header.kind not in FILE_KINDS:
            if header.kind != FOLDER:
                self.ignore(f"({LINKS.get(header.kind, 'device or other')})")
            return False
        return not member.name.endswith("/")  # a folder, as tars before POSIX wrote it

    def _parsed_attributes(self, start: int, size: int, position: int) -> tuple[str | None, int | None]:
        try:
            return parse_attributes(self._read(start, size, position))
        except ValueError as error:
            raise self._damage(position, str(error)) from error

    def _read(self, start: int, size: int, position: int) -> bytes:
        """A long name or attributes: small, or not believed."""
        if size > _MAX_ATTRIBUTE_BYTES:
            raise self._damage(position, f"a name or attributes of {size:,} bytes")
        content = self._content[start : start + size]
        if len(content) < size:
            raise self._fault(f"is truncated: it ends at byte {start + len(content)}, within a name")
        self.hasher.update(content)
        return content

    def _check_end(self, position: int, *, pending: bool) -> None:
        """A tar ends with zeros up to a round size; a second tar behind it would be lost without a word."""
        if pending:
            raise self._damage(position, "a name without a member")
        rest = self._content[position : position + _MAX_PADDING]
        padding = len(rest) - len(rest.lstrip(b"\0"))
        if padding < len(rest) or position + len(rest) < len(self._content):
            raise TarError(
                f"shard {self._name!r} goes on at byte {position + padding}, after the end marker at byte "
                f"{position}: are these two tars in one file? build the shard again, or split it there"
            )

    def _damage(self, position: int, what: str) -> TarError:
        return self._fault(f"is no tar, or damaged at byte {position} ({what})")

    def _fault(self, problem: str) -> TarError:
        return TarError(f"shard {self._name!r} {problem}; {_REMEDY}")


def _mapped(path: Path, name: str) -> mmap.mmap:
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            raise DataError(f"shard {name!r} is empty; {_REMEDY}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _group(walk: _Walk) -> Iterator[tuple[str, list[Member]]]:
    group: list[Member] = []
    for member in walk:
        if member.name.rpartition("/")[2].startswith(
            (".", "__")
        ):  # macOS leftovers; WebDataset's own metadata
            continue
        if member.suffix not in MAX_BYTES:
            walk.ignore(member.suffix)
            continue
        if group and member.key != group[0].key:
            yield group[0].key, group
            group = []
        group.append(member)
    if group:
        yield group[0].key, group


def _row(content: Content, key: str, members: list[Member], name: str) -> tuple[int, int, int, int]:
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
        label = _parse_label(content[written.offset : written.offset + written.size], key, name)
    return image.offset, image.size, label, SUFFIXES[image.suffix]


def _parse_label(text: bytes, key: str, name: str) -> int:
    stripped = text.strip()
    if not stripped.isdigit() or int(stripped) > _MAX_LABEL:
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


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_LENGTH else f"...{name[-_MAX_NAME_LENGTH:]}"
