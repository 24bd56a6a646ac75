"""Prefetcher: fetches the shards that come next in the plan while others are read; one thread per process that asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.errors import DataError
from data_pipeline.storage.cache import ShardCache
from data_pipeline.storage.source import is_compressed, is_remote

if TYPE_CHECKING:
    from data_pipeline.shard import Shard

log = logging.getLogger(__name__)


class Prefetcher:
    """Copies of `shards` into `cache`, in the order they are wanted; what another process fetches is left to it."""

    def __init__(self, cache: ShardCache, shards: Sequence[Shard]) -> None:
        self._cache = cache
        self._shards = shards
        self._wanted: tuple[int, ...] = ()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._has_work: bool | None = None

    @property
    def has_work(self) -> bool:
        """Whether there are shards that are read through the cache at all."""
        if self._has_work is None:
            self._has_work = any(map(self._is_copied, range(len(self._shards))))
        return self._has_work

    def want(self, shards: Sequence[int]) -> None:
        """The shards that will be read next, the nearest first, instead of those wanted before; returns at once."""
        wanted = tuple(number for number in dict.fromkeys(shards) if self._is_copied(number))
        if wanted == self._wanted:
            return
        with self._changed:
            self._wanted = wanted
            self._changed.notify()
        if self._thread is None:
            # A daemon: a process that ends waits for no download, whose leftover the next one removes.
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        done: tuple[int, ...] = ()
        while True:
            with self._changed:
                while self._wanted == done:
                    self._changed.wait()
                wanted = self._wanted
            self._fetch(wanted)
            done = wanted

    def _fetch(self, wanted: tuple[int, ...]) -> None:
        keep: set[str] = set()  # of what is wanted, the nearer does not go for the farther
        for number in wanted:
            if wanted is not self._wanted:
                return
            shard = self._shards[number]
            try:
                keep.add(self._cache.path(shard.url, shard).name)
                if not self._cache.prefetch(shard.url, shard, keep=keep):
                    return  # the cache is full of what is needed sooner
            except DataError as error:  # the reader of that shard tries again, and reports what is wrong
                log.info("not fetched ahead: %s", error)

    def _is_copied(self, number: int) -> bool:
        url = self._shards[number].url
        return is_remote(url) or is_compressed(url)

    def __reduce__(self) -> tuple[type[Prefetcher], tuple[ShardCache, Sequence[Shard]]]:
        return Prefetcher, (self._cache, self._shards)  # threads do not travel to other processes
