"""ShardFiles: the open shards of one process, read at an offset wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.storage.cache import ShardCache
from data_pipeline.storage.source import check_size, is_compressed, is_remote, local_path, refuse_commands

if TYPE_CHECKING:
    from data_pipeline.shard import Shard

_MAX_OPEN = 256  # file descriptors one process keeps; the usual limit is 1,024


def local_shard(url: str, expected: Shard | None = None) -> Path:
    """An uncompressed local tar with this shard's content; fetched or unpacked into the cache at first use.

    To be opened at once: a copy in the cache may go when room is needed, and is kept only by those who have it open.
    """
    if not _is_copied(url):
        return local_path(url)
    cache = ShardCache()
    os.close(cache.open(url, expected))
    return cache.path(url, expected)


class ShardFiles:
    """Reads shards, checked at their opening against `shards`, what the index says; remote ones through `cache`.

    The least recently read are closed first, by halves: those read since the last turn, and those only before.
    """

    def __init__(self, shards: Sequence[Shard] = (), *, cache: ShardCache | None = None) -> None:
        self._shards = shards
        self.cache = cache or ShardCache()
        self._recent: dict[str, int] = {}
        self._earlier: dict[str, int] = {}
        self._expected: dict[str, Shard] | None = None

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset` of the uncompressed shard; fewer only where the file ends."""
        descriptor = self._recent.get(url)
        if descriptor is None:
            descriptor = self._recall(url)
        return os.pread(descriptor, size, offset)

    def size(self, url: str) -> int:
        """Bytes of the uncompressed shard."""
        descriptor = self._recent.get(url)
        return os.fstat(self._recall(url) if descriptor is None else descriptor).st_size

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        while self._turn():
            pass

    def _recall(self, url: str) -> int:
        descriptor = self._earlier.pop(url, None)
        if descriptor is None:
            descriptor = self._open(url)
        if len(self._recent) >= _MAX_OPEN // 2:
            self._turn()
        self._recent[url] = descriptor
        return descriptor

    def _open(self, url: str) -> int:
        if self._expected is None:
            self._expected = {shard.url: shard for shard in self._shards}
        expected = self._expected.get(url)
        if expected is not None:
            check_size(url, expected.num_bytes, name=expected.name)
        if _is_copied(url):
            return self.cache.open(url, expected, release=self._turn)
        return os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)

    def _turn(self) -> bool:
        """Closes what was not read since the last turn; false if nothing is open."""
        had_open = bool(self._recent or self._earlier)
        for descriptor in self._earlier.values():
            os.close(descriptor)
        self._recent, self._earlier = {}, self._recent
        return had_open

    def __getstate__(self) -> dict[str, object]:
        # Descriptors mean nothing in another process.
        return {**self.__dict__, "_recent": {}, "_earlier": {}, "_expected": None}


def _is_copied(url: str) -> bool:
    refuse_commands(url)
    return is_remote(url) or is_compressed(url)
