"""Existing WebDataset tars as records, to pack them anew: other sizes, fewer classes, another order."""

from __future__ import annotations

import mmap
from collections import Counter
from itertools import groupby
from pathlib import Path

from data_pipeline.class_numbers import numbered_classes
from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, open_index
from data_pipeline.packing.record import SUFFIXES, Corpus, Record, Span
from data_pipeline.scan import MAX_BYTES, Member, list_members, scan_shard
from data_pipeline.shard import find_shards
from data_pipeline.storage.files import local_shard

_TARS = (".tar", ".tar.gz", ".tgz")
_EXTRAS = frozenset({"txt", "json"})
"""Members that go along as they are; others are counted and left out."""


def is_tar(source: Path) -> bool:
    """Whether a file's name says that it is a shard."""
    return source.is_file() and source.name.endswith(_TARS)


def holds_tars(folder: Path) -> bool:
    """Whether a folder holds shards."""
    return any(path.name.endswith(_TARS) for path in folder.iterdir())


def read_tars(source: Path, *, unlabelled: bool = False) -> Corpus:
    """Records of a tar, or of a folder of them, in their order and under their keys."""
    paths = find_shards(source) if source.is_dir() else [source]
    records: list[Record] = []
    shard_of_key: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    stamps = []
    for path in paths:
        for record in _records(path, left_out, unlabelled=unlabelled):
            key = str(record.key)
            _refuse_leaving_key(path, key)
            if key in shard_of_key:
                raise DataError(
                    f"key {key!r} stands in {shard_of_key[key]} and in {path}: keys of a data set are unique; "
                    "pack these tars apart from one another"
                )
            shard_of_key[key] = str(path)
            records.append(record)
        status = path.stat()
        stamps.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    classes = _classes(source, records)
    return Corpus(kind="tars", records=records, classes=classes, stamps=tuple(stamps), left_out=left_out)


def _refuse_leaving_key(path: Path, key: str) -> None:
    """DataError for a key that names a place outside of the folder into which somebody may unpack the shard."""
    if key.startswith("/") or ".." in key.split("/") or "\\" in key or not key.isprintable():
        raise DataError(
            f"{path}: key {key!r} would lie outside of a folder it is unpacked into, or has characters no file name "
            "should have; such a tar was made by mistake or with bad intent: it is not packed"
        )


def _records(path: Path, left_out: Counter[str], *, unlabelled: bool) -> list[Record]:
    local = local_shard(str(path))
    scanned = scan_shard(local, name=path.name)
    with open(local, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        members = [member for member in list_members(content, name=path.name) if _counts(member)]
    left_out.update(scanned.ignored)
    groups = groupby(members, key=lambda member: member.key)
    return [
        _record(path, key, tuple(group), -1 if unlabelled else int(label), int(offset), left_out)
        for (key, group), (label, offset) in zip(groups, scanned.rows[["label", "offset"]], strict=True)
    ]


def _counts(member: Member) -> bool:
    """Hidden files (what macOS leaves behind), WebDataset's own metadata and unknown fields belong to no sample."""
    return member.suffix in MAX_BYTES and not member.name.rpartition("/")[2].startswith((".", "__"))


def _record(
    path: Path,
    key: str,
    members: tuple[Member, ...],
    label: int,
    offset: int,
    left_out: Counter[str],
) -> Record:
    image = next(member for member in members if member.offset == offset)
    extras = tuple(
        (member.suffix, Span(str(path), member.offset, member.size))
        for member in members
        if member.suffix in _EXTRAS
    )
    # One image is a sample's; which one the scan decided.
    left_out.update(
        member.suffix for member in members if member is not image and f".{member.suffix}" in SUFFIXES
    )
    return Record(
        name=f"{path.name}/{key}",
        key=key,
        image=Span(str(path), image.offset, image.size),
        suffix=SUFFIXES["." + image.suffix],
        label=label,
        extras=extras,
    )


def _classes(source: Path, records: list[Record]) -> tuple[str, ...]:
    highest = max(records, key=lambda record: record.label)
    if highest.label < 0:
        return ()
    if source.is_dir() and (source / INFO_NAME).is_file():
        return open_index(str(source)).classes
    return numbered_classes(highest.label, where=highest.name)
