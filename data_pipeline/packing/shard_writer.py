"""ShardJob: records to one WebDataset tar, whole or not at all, with its part of the index."""

from __future__ import annotations

import errno
import gzip
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, write_rows
from data_pipeline.packing.fetch import read_ahead
from data_pipeline.packing.idx import encode_png
from data_pipeline.packing.record import BrokenImage, MissingImage, Record, Skipped, suffix_of
from data_pipeline.packing.tar_stream import TarStream
from data_pipeline.packing.written_shard import WrittenShard, load_written, save_written
from data_pipeline.scan import MAX_BYTES, SAMPLE, SUFFIXES
from data_pipeline.whole_file import PARTIAL, path_aside, sync_folder

if TYPE_CHECKING:
    from data_pipeline.packing.recode import Recoding

_SHARD_OF_PARTIAL = re.compile(r"\.(.+?\.tar(?:\.gz)?)\.")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_Row = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What is done to the images of a build, and what when that fails."""

    recoding: Recoding | None = None
    """None passes the original bytes through."""
    restart_markers: bool = False
    """Put into JPEGs, as they are or recoded."""
    skip_missing: bool = False
    skip_broken: bool = False

    def fingerprint(self) -> str:
        """All of it that decides about the bytes."""
        recoded = self.recoding.fingerprint() if self.recoding else None
        marked = ""
        if self.restart_markers:
            from data_pipeline.packing.restart_markers import jpegtran_version

            marked = f" {jpegtran_version()}"
        return f"{recoded} {self.skip_missing} {self.skip_broken}{marked}"

    @property
    def is_slow(self) -> bool:
        """Whether images are encoded anew, some way or other."""
        return self.recoding is not None or self.restart_markers


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard to write."""

    path: str
    """Where it goes; ``.tar.gz`` is compressed."""
    first_number: int
    """Number of its first record in the whole data set, from which keys are made."""
    key_width: int
    records: tuple[Record, ...]
    treatment: Treatment = Treatment()


def write_shard(job: ShardJob, on_record: Callable[[], None]) -> WrittenShard:
    """Writes a shard aside, syncs it, notes it, renames it; `on_record` follows each record, may raise to stop."""
    final = Path(job.path)
    aside = path_aside(final)
    try:
        written, rows = _write_aside(job, aside, on_record)
        if load_written(job.path) is not None or (final.parent / INFO_NAME).exists():
            return written  # another task has done the same meanwhile
        if rows:
            write_rows(final.parent, final.name, np.array(rows, dtype=SAMPLE))
        # The note first: a tar without one is written anew, a note without its tar counts for nothing.
        save_written(written)
        if rows:
            os.replace(aside, final)
        sync_folder(final.parent)
    except FileNotFoundError:
        # Other tasks completed the build in this very moment, and tidied up after it.
        if not (final.parent / INFO_NAME).exists():
            raise
    except OSError as fault:
        if fault.errno in _NO_SPACE:
            raise DataError(
                f"{final.parent}: {fault.strerror}; make room and run the same command again: it goes on where it was"
            ) from fault
        raise
    finally:
        aside.unlink(missing_ok=True)
    return written


def write_if_missing(job: ShardJob, on_record: Callable[[], None]) -> None:
    """Writes a shard unless another task did so meanwhile."""
    if load_written(job.path) is None:
        write_shard(job, on_record)


def remove_partials(folder: Path, jobs: Sequence[ShardJob] | None = None) -> None:
    """Deletes what killed writers left behind: of these shards, or (None) of all."""
    names = None if jobs is None else {Path(job.path).name for job in jobs}
    for leftover in folder.glob(f".*{PARTIAL}"):
        shard = _SHARD_OF_PARTIAL.match(leftover.name)
        if names is None or (shard is not None and shard[1] in names):
            leftover.unlink(missing_ok=True)


def _write_aside(
    job: ShardJob, aside: Path, on_record: Callable[[], None]
) -> tuple[WrittenShard, list[_Row]]:
    strangers: list[str] = []
    skipped: list[Skipped] = []
    rows: list[_Row] = []
    num_captions = 0
    with open(aside, "wb", buffering=0) as raw:
        hashed = _HashedFile(raw)
        with _compressed(hashed, job.path) as sink:
            tar = TarStream(sink)
            for place, (record, read) in enumerate(read_ahead(job.records)):
                key = record.key or f"{job.first_number + place:0{job.key_width}d}"
                try:
                    image = _image(record, read(), job.treatment)
                except (MissingImage, BrokenImage) as fault:
                    skipped.append(_skip_or_raise(record, fault, job.treatment))
                else:
                    known = suffix_of(image)
                    if known is None:
                        strangers.append(record.name)
                    rows.append(_add_sample(tar, key, known or record.suffix, image, record))
                    num_captions += record.has_caption
                on_record()
            tar.finish()
        os.fsync(raw.fileno())
    written = WrittenShard(
        path=job.path,
        num_samples=len(rows),
        num_bytes=hashed.num_bytes if rows else 0,
        digest=hashed.hexdigest(),
        num_captions=num_captions,
        strangers=tuple(strangers),
        skipped=tuple(skipped),
    )
    return written, rows


def _image(record: Record, content: bytes, treatment: Treatment) -> bytes:
    if record.shape is not None:
        content = encode_png(content, *record.shape)
    # Imported here: they bring codecs along, which a build that passes bytes through does without.
    if treatment.recoding is not None:
        from data_pipeline.packing.recode import recode

        content = recode(content, treatment.recoding)
    if treatment.restart_markers and suffix_of(content) == "jpg":
        from data_pipeline.packing.restart_markers import with_restart_markers

        content = with_restart_markers(content)
    return content


def _add_sample(tar: TarStream, key: str, suffix: str, image: bytes, record: Record) -> _Row:
    """Adds a sample's members in the order of their suffixes; returns its row of the index.

    Content decided about the suffix: ImageNet itself has a PNG that is called ``.JPEG``.
    """
    members = {suffix: image}
    if record.label >= 0:
        members["cls"] = b"%d" % record.label
    if record.caption is not None:
        members["txt"] = record.caption.encode("utf-8", "surrogateescape")
    if record.fields is not None:
        members["json"] = record.fields.encode()
    for name, span in record.extras:
        members[name] = span.read()
    offset = 0
    for name in sorted(members):
        if len(members[name]) > MAX_BYTES[name]:
            raise DataError(
                f"{record.name!r}: {len(members[name]):,} bytes of '.{name}' are more than a shard may hold "
                f"({MAX_BYTES[name]:,}): make it smaller, or leave it out"
            )
        start = tar.add(f"{key}.{name}", members[name])
        offset = start if name == suffix else offset
    return offset, len(image), record.label, SUFFIXES[suffix]


def _skip_or_raise(record: Record, fault: DataError, treatment: Treatment) -> Skipped:
    missing = isinstance(fault, MissingImage)
    if treatment.skip_missing if missing else treatment.skip_broken:
        return Skipped(record.name, str(fault))
    if missing:
        raise DataError(f"{fault}, or leave such images out: --skip-missing") from fault
    raise DataError(
        f"{record.name!r} does not decode: {fault}; repair or remove it, or leave such images out: --skip-broken"
    ) from fault


class _HashedFile:
    """A file that knows the checksum and the number of the bytes written to it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._hasher = xxhash.xxh3_128()
        self.num_bytes = 0

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()

    def write(self, content: bytes) -> int:
        self.write_all([content])
        return len(content)

    def write_all(self, pieces: Sequence[bytes]) -> None:
        """Writes pieces one after another in one call, without joining them."""
        for piece in pieces:
            self._hasher.update(piece)
        total = sum(map(len, pieces))
        done = os.writev(self._raw.fileno(), pieces)
        if done < total:  # a signal, or the last bytes of a disk
            rest = memoryview(b"".join(pieces))[done:]
            while rest:
                rest = rest[os.write(self._raw.fileno(), rest) :]
        self.num_bytes += total


@contextmanager
def _compressed(file: _HashedFile, path: str) -> Iterator[Callable[[Sequence[bytes]], None]]:
    if not path.endswith(".gz"):
        yield file.write_all
        return
    # No name and no time in the header: the same content is the same file.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as stream:  # type: ignore[call-overload]
        yield lambda pieces: stream.writelines(pieces)
