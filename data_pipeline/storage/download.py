"""One shard, from where it lies into an open file: fetched, unpacked if it is compressed, and checked by its digest."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.storage.remote import stream
from data_pipeline.storage.source import is_compressed, is_remote, local_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from data_pipeline.shard import Shard

_PIECE = 1 << 20
_TRIES = 2  # what came whole but wrong is fetched once more: proxies and disks err


def download(
    url: str,
    out: IO[bytes],
    *,
    expected: Shard | None,
    reserve: Callable[[int], None],
    patience_s: float,
) -> None:
    """Writes the uncompressed shard to `out`; DataError if it cannot be had or is not the `expected` one.

    `reserve` is told how large the file is about to be, before it is.
    """
    for _attempt in range(_TRIES):
        out.seek(0)
        stored = _Stored(_stored_chunks(url, expected, patience_s))
        _copy(url, stored, out, reserve)
        out.truncate()
        out.flush()
        if expected is None or _matches(expected, stored, Path(out.name)):
            return
    raise DataError(
        f"shard {url!r} has not the digest its index says: it was changed or damaged where it lies; "
        "restore it, or, if it is right, index it anew (mirada data index)"
    )


def _copy(url: str, stored: _Stored, out: IO[bytes], reserve: Callable[[int], None]) -> None:
    content = gzip.GzipFile(fileobj=stored) if is_compressed(url) else stored
    try:
        while piece := content.read(_PIECE):
            reserve(out.tell() + len(piece))
            out.write(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"shard {url!r} is truncated or damaged ({error}); copy or build it again") from error


def _matches(expected: Shard, stored: _Stored, copy: Path) -> bool:
    if expected.is_checked_whole:
        return stored.num_bytes == expected.num_bytes and stored.hasher.hexdigest() == expected.digest
    return expected.matches(copy)


def _stored_chunks(url: str, expected: Shard | None, patience_s: float) -> Iterator[bytes]:
    if is_remote(url):
        return stream(url, num_bytes=expected.num_bytes if expected else None, patience_s=patience_s)
    return _file_chunks(local_path(url))


def _file_chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_PIECE):
            yield chunk


class _Stored(io.RawIOBase):
    """The bytes of a shard as it lies, read like a file; counts and digests what was read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")
        self.hasher = xxhash.xxh3_128()
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        if not self._left:
            chunk = next(self._chunks, b"")
            self.hasher.update(chunk)
            self.num_bytes += len(chunk)
            self._left = memoryview(chunk)
        view = memoryview(buffer)
        size = min(len(view), len(self._left))
        view[:size], self._left = self._left[:size], self._left[size:]
        return size
