"""Bytes over the network: ranges, whole objects, sizes and listings of URLs, whatever fsspec reaches.

A read that fails is tried again, with growing pauses, until no byte came for `patience_s`; the DataError that ends
it names URL and cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from data_pipeline.errors import DataError
from data_pipeline.storage.chunks import describe, list_paths, read_chunks
from data_pipeline.storage.retry import PATIENCE_S, Retries
from data_pipeline.storage.source import refuse_commands

T = TypeVar("T")

_VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified")


def read_range(url: str, start: int, stop: int, *, patience_s: float = PATIENCE_S) -> bytes:
    """Bytes [start, stop) of an object; fewer only where it ends."""
    return b"".join(stream(url, start, stop, patience_s=patience_s))


def read_all(url: str, limit: int, *, patience_s: float = PATIENCE_S) -> bytes:
    """A whole object of at most `limit` bytes; DataError if it is larger."""
    content = b"".join(stream(url, 0, limit + 1, patience_s=patience_s))
    if len(content) > limit:
        raise DataError(f"{url!r} has more than the {limit:,} bytes allowed here")
    return content


def remote_size(url: str, *, patience_s: float = PATIENCE_S) -> int:
    """Size of an object in bytes."""
    return remote_version(url, patience_s=patience_s)[0]


def remote_version(url: str, *, patience_s: float = PATIENCE_S) -> tuple[int, str]:
    """Size of an object in bytes, and what changes with its content ('' where the server says nothing)."""
    description = _retried(describe, url, patience_s)
    if description.get("size") is None:
        raise DataError(f"{url!r}: the server does not say how large it is; copy it to a disk first")
    version = next((description[key] for key in _VERSION_KEYS if description.get(key)), "")
    return int(description["size"]), str(version)


def list_folder(url: str, *, patience_s: float = PATIENCE_S) -> list[str]:
    """Sorted names of what lies in a folder (over http: what its index page links to)."""
    paths = _retried(list_paths, url, patience_s)
    names = {path.rstrip("/").rpartition("/")[2] for path in paths if "?" not in path and "#" not in path}
    return sorted(names - {"", ".", ".."})


def stream(
    url: str,
    start: int = 0,
    stop: int | None = None,
    *,
    num_bytes: int | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[bytes]:
    """Chunks of [start, stop); after a cut it goes on with the byte that follows the last one.

    `num_bytes` is what the whole object must measure: where it does not, there is a DataError before the first chunk.
    """
    refuse_commands(url)
    retries, position = Retries(url, patience_s=patience_s), start
    while stop is None or position < stop:
        try:
            for chunk in read_chunks(url, position, stop, num_bytes=num_bytes, whole=start == 0):
                position += len(chunk)
                retries.progressed()
                yield chunk
            return
        except Exception as error:  # every file system has exceptions of its own
            retries.wait(error)


def _retried(ask: Callable[[str], T], url: str, patience_s: float) -> T:
    refuse_commands(url)
    retries = Retries(url, patience_s=patience_s)
    while True:
        try:
            return ask(url)
        except Exception as error:  # every file system has exceptions of its own
            retries.wait(error)
