"""ShardCache: copies of shards that lie elsewhere or are compressed, in one folder for all processes of a node.

    <hash>-name.tar      there, whole and verified, or not at all; last opened when its time of change says
    <hash>-name.partial  locked by the process that writes it; an unlocked one is the leftover of a dead process
    .lock                held for the moments in which room is made, or a copy gets its name

A copy that is open has a shared lock on it, and only what is not locked is removed. Should one be removed between
its opening and its locking, no harm is done: on Linux a removed file stays readable as long as it is open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.storage.download import download
from data_pipeline.storage.locks import locked, open_shared, share, writing
from data_pipeline.storage.remote import remote_version
from data_pipeline.storage.retry import PATIENCE_S
from data_pipeline.storage.room import PARTIAL, Claim, NoRoomError, Room
from data_pipeline.storage.source import is_compressed, is_remote, local_path

if TYPE_CHECKING:
    from data_pipeline.shard import Shard

_PREFETCH_PATIENCE_S = 30.0  # then the reader, when it comes to the shard, tries with all of its own
_NUM_PREFETCHES = 4  # at a time, over all processes of a node


class ShardCache:
    """The copies in $MIRADA_CACHE (default: a folder in the home directory), of at most `max_bytes` together.

    The least recently opened go first. Without `max_bytes` they take at most half of what the disk has free.
    """

    def __init__(self, *, max_bytes: int | None = None, patience_s: float = PATIENCE_S) -> None:
        configured = os.environ.get("MIRADA_CACHE")
        self.folder = Path(configured) if configured else Path.home() / ".cache" / "mirada" / "shards"
        self._room = Room(self.folder, max_bytes=max_bytes)
        self._patience_s = patience_s

    def open(
        self, url: str, expected: Shard | None = None, *, release: Callable[[], bool] | None = None
    ) -> int:
        """A descriptor of a shard's copy, fetched if need be; the copy stays until the descriptor is closed.

        `release` closes other descriptors of this process, to make room; it returns false when there are none.
        """
        path = self.path(url, expected)
        while True:
            descriptor = _open_copy(path, expected)
            if descriptor is None:
                descriptor = self._fetch(
                    url, expected, path, Claim(release=release), wait=True, patience_s=self._patience_s
                )
            if descriptor is not None:
                return descriptor

    def prefetch(self, url: str, expected: Shard | None, *, keep: Collection[str]) -> bool:
        """Fetches a shard that will be wanted, unless another process is at it; false if there is no room for it.

        What is open and the copies named in `keep` stay. It may wait for other prefetches of this node to end.
        """
        path = self.path(url, expected)
        if path.exists():
            _mark_opened(path)  # about to be: what is read next is not what goes next
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f".prefetch-{os.getpid() % _NUM_PREFETCHES}"):
            try:
                descriptor = self._fetch(
                    url,
                    expected,
                    path,
                    Claim(keep=keep, urgent=False),
                    wait=False,
                    patience_s=_PREFETCH_PATIENCE_S,
                )
            except NoRoomError:
                return False
        if descriptor is not None:
            os.close(descriptor)
        return True

    def path(self, url: str, expected: Shard | None = None) -> Path:
        """Where the copy of a shard is, or would be."""
        if not is_remote(url):
            status = local_path(url).stat()
            url, identity = str(local_path(url).resolve()), f"{status.st_size} {status.st_mtime_ns}"
        elif expected is not None:
            identity = f"{expected.num_bytes} {expected.digest}"
        else:
            identity = "{} {}".format(*remote_version(url, patience_s=self._patience_s))
        stem = url.rpartition("/")[2].removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
        return self.folder / f"{xxhash.xxh3_128_hexdigest(f'{url} {identity}'.encode())}-{stem[-50:]}.tar"

    def _fetch(
        self, url: str, expected: Shard | None, path: Path, claim: Claim, *, wait: bool, patience_s: float
    ) -> int | None:
        """A descriptor of the copy, or None if another process had or has it in hand."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with writing(path.with_suffix(PARTIAL), wait=wait) as partial:
                if partial is None or path.exists():
                    return None
                partial.truncate(0)
                if expected is not None:
                    self._room.reserve(partial, expected.num_bytes, claim)
                download(
                    url,
                    partial,
                    expected=expected,
                    reserve=lambda num_bytes: self._room.reserve(partial, num_bytes, claim),
                    patience_s=patience_s,
                )
                os.fsync(partial.fileno())
                _mark_opened(partial.fileno())
                self._room.publish(partial.name, path)
                return share(partial)
        except OSError as error:
            raise DataError(
                f"shard {url!r} cannot be copied to the cache {str(self.folder)!r}: {error}; free space there, lower "
                "data.cache_size, or name another folder in $MIRADA_CACHE"
            ) from error


def _open_copy(path: Path, expected: Shard | None) -> int | None:
    descriptor = open_shared(path)
    if descriptor is None:
        return None
    size = None if expected is None or is_compressed(expected.url) else expected.num_bytes
    if size is not None and os.fstat(descriptor).st_size != size:  # a machine that lost power can leave this
        path.unlink(missing_ok=True)
        os.close(descriptor)
        return None
    _mark_opened(descriptor)
    return descriptor


def _mark_opened(copy: int | Path) -> None:
    now = time.time_ns()  # the kernel's own "now" moves in steps of milliseconds
    with suppress(PermissionError, FileNotFoundError):  # another user's, or gone
        os.utime(copy, ns=(now, now))
