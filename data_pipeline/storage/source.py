"""Where shards lie: locations -> local files (through a cache where needed) -> bytes at an offset.

mirada://sample/train -> the packaged folder      https://host/a.tar  -> ~/.cache/mirada/shards/<hash>-a.tar
/data/a.tar           -> itself                   /data/a.tar.gz      -> ~/.cache/mirada/shards/<hash>-a.tar
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

import fsspec
import xxhash

from data_pipeline.errors import DataError

if TYPE_CHECKING:
    from _typeshed import SupportsRead

_PACKAGED = "mirada://"
_GZIPPED = (".tar.gz", ".tgz")
_MAX_OPEN = 256  # file descriptors one process keeps; the usual limit is 1,024


def resolve(location: str) -> str:
    """The folder or URL a location stands for; ``mirada://X`` is the data that ships inside this package."""
    if not location.startswith(_PACKAGED):
        return location
    root = Path(__file__).resolve().parents[1]
    folder = (root / location.removeprefix(_PACKAGED)).resolve()
    if not folder.is_relative_to(root):
        raise DataError(
            f"{location!r} leaves the package; packaged data is named like 'mirada://sample/train'"
        )
    return str(folder)


def is_remote(location: str) -> bool:
    """Whether a location has to be fetched before its bytes can be read at an offset."""
    return "://" in location and not location.startswith("file://")


def local_shard(url: str) -> Path:
    """An uncompressed local tar with this shard's content; fetched or unpacked into the cache at first use."""
    refuse_commands(url)
    if is_remote(url):
        return _cached(url, *_remote_version(url))
    path = Path(url.removeprefix("file://"))
    if not path.is_file():
        raise DataError(
            f"shard {str(path)!r} does not exist; restore it, or run: mirada data index {path.parent!s}"
        )
    if not path.name.endswith(_GZIPPED):
        return path
    status = path.stat()
    return _cached(str(path.resolve()), status.st_size, str(status.st_mtime_ns))


def check_size(url: str, num_bytes: int, *, name: str) -> None:
    """Raises DataError when a local shard is missing or has not the size its index says; remote ones come whole."""
    if is_remote(url):
        return
    path = Path(url.removeprefix("file://"))
    size = path.stat().st_size if path.is_file() else None
    if size != num_bytes:
        found = f"has {size} bytes" if size is not None else f"is not at {str(path)!r}"
        raise DataError(
            f"shard {name!r} {found}, and its index says {num_bytes} bytes: copy it again from where it came, or, if "
            "the shard is right, index it anew (mirada data index); mirada data verify finds what else is wrong"
        )


def refuse_commands(url: str) -> None:
    """Raises DataError on URLs that would run a program or chain one file system into another."""
    if url.startswith("pipe:") or "::" in url:
        raise DataError(
            f"{url!r} is not allowed: a shard is a file or URL, never a command or a chain of them"
        )


class ShardFiles:
    """Open shards of one process, the least recently used closed first."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset` of the uncompressed shard; fewer only where the file ends."""
        descriptor = self._descriptors.get(url)
        if descriptor is None:
            descriptor = self._open(url)
        else:
            self._descriptors.move_to_end(url)
        return os.pread(descriptor, size, offset)

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, url: str) -> int:
        if len(self._descriptors) >= _MAX_OPEN:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[url] = os.open(local_shard(url), os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[url]

    def __getstate__(self) -> dict[str, object]:
        return {}  # descriptors mean nothing in another process

    def __setstate__(self, state: dict[str, object]) -> None:
        self._descriptors = OrderedDict()


def _cache_folder() -> Path:
    configured = os.environ.get("MIRADA_CACHE")
    folder = Path(configured) if configured else Path.home() / ".cache" / "mirada" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cached(url: str, size: int, version: str) -> Path:
    digest = xxhash.xxh3_128_hexdigest(f"{url}\n{size}\n{version}".encode())
    stem = url.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
    path = _cache_folder() / f"{digest}-{stem}.tar"
    if path.exists():
        return path
    with _locked(path.with_suffix(".lock")):
        if not path.exists():  # another process may have made it while this one waited
            _write_shard(url, size, path)
    return path


def _write_shard(url: str, size: int, path: Path) -> None:
    partial = path.with_suffix(".partial")
    try:
        with _open_stored(url) as stored, _unpacked(stored, url) as stream, open(partial, "wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        if size and not url.endswith(_GZIPPED) and partial.stat().st_size != size:
            raise DataError(
                f"shard {url!r} broke off: {partial.stat().st_size} of {size} bytes came; try again"
            )
        os.replace(partial, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"shard {url!r} is truncated or damaged ({error}); copy or build it again") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open_stored(url: str) -> Iterator[IO[bytes]]:
    if not is_remote(url):
        with open(url, "rb") as local:
            yield local
        return
    with fsspec.open(url, "rb") as remote:
        yield remote


def _unpacked(stored: IO[bytes], url: str) -> AbstractContextManager[SupportsRead[bytes]]:
    return gzip.GzipFile(fileobj=stored) if url.endswith(_GZIPPED) else nullcontext(stored)


def _remote_version(url: str) -> tuple[int, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        described = filesystem.info(path)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"shard {url!r} cannot be reached: {error}; check the address and the connection"
        ) from error
    version = next(
        (described[key] for key in ("ETag", "etag", "mtime", "LastModified") if described.get(key)), ""
    )
    return int(described.get("size") or 0), str(version)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # flock: released by the kernel when the holder dies, so a killed process blocks nobody.
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
