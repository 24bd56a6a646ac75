"""ShardJob: records to one WebDataset tar, whole or not at all; the only importer of webdataset."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_pipeline.packing.idx import encode_png
from data_pipeline.packing.record import Record, suffix_of

_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard to write."""

    path: str
    """Where it goes; ``.tar.gz`` is compressed."""
    first_number: int
    """Number of its first record in the whole data set, from which keys are made."""
    key_width: int
    records: tuple[Record, ...]


def write_shard(job: ShardJob, on_record: Callable[[], None]) -> tuple[str, ...]:
    """Writes a shard aside, syncs it, renames it; `on_record` follows each record, may raise to stop.

    Returns the names of records that are no JPEG, PNG or WebP by content; they are packed as they are.
    """
    # NOTE: importing webdataset imports torch (2 s); whoever only reads indexes must not pay for it.
    from webdataset import TarWriter

    strangers = []
    final = Path(job.path)
    with (
        _written_aside(final) as file,
        _compressed(file, final) as stream,
        # Fixed owner and time, so that the same records are the same bytes.
        TarWriter(stream, user="mirada", group="mirada", mtime=0, encoder=False) as tar,
    ):
        for place, record in enumerate(job.records):
            members, known = _members(record)
            if not known:
                strangers.append(record.name)
            tar.write({"__key__": record.key or f"{job.first_number + place:0{job.key_width}d}", **members})
            on_record()
    return tuple(strangers)


def remove_partials(folder: Path) -> None:
    """Deletes what killed writers left behind."""
    for leftover in folder.glob(f".*{_PARTIAL}"):
        leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _members(record: Record) -> tuple[dict[str, bytes], bool]:
    """A sample's members by suffix, and whether its image is of a known kind.

    Content decides about the suffix: ImageNet itself has a PNG that is called ``.JPEG``.
    """
    content = record.image.read()
    if record.shape is not None:
        content = encode_png(content, *record.shape)
    suffix = suffix_of(content)
    members = {suffix or record.suffix: content}
    if record.label >= 0:
        members["cls"] = str(record.label).encode()
    if record.caption is not None:
        members["txt"] = record.caption.encode()
    for name, span in record.extras:
        members[name] = span.read()
    return members, suffix is not None


@contextmanager
def _written_aside(final: Path) -> Iterator[IO[bytes]]:
    # The process id keeps a writer that outlived its killed parent from sharing a file with its successor.
    aside = final.with_name(f".{final.name}.{os.getpid()}{_PARTIAL}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(final.parent)


@contextmanager
def _compressed(file: IO[bytes], final: Path) -> Iterator[IO[bytes]]:
    if final.suffix != ".gz":
        yield file
        return
    # No name and no time in the header: the same content is the same file.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as stream:
        yield stream  # type: ignore[misc]
