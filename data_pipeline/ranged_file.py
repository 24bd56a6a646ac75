"""RangedFile: a remote file as bytes at an offset, of which only what is asked for is fetched, and a little more."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.storage.remote import read_range

_SMALLEST = 4 << 10
_LARGEST = 1 << 20
_WORTH_A_REQUEST = 48 << 10
"""Bytes that are read through rather than jumped over: a request costs about as long as so many bytes."""


class RangedFile:
    """Bytes of a remote file, read forward with jumps.

    What is fetched at once adapts: it doubles while the jumps are short (small members, many headers), and halves
    while they are long (large members, of which nothing is wanted).
    """

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._block = _Block(0, b"")
        # A sample's label is read after the header that follows it, which may have been where the next block begins.
        self._block_before = self._block
        self._ahead = _SMALLEST
        self.num_requests = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self._size)
        for block in (self._block, self._block_before):
            if block.start <= start <= stop <= block.end:
                return block.content[start - block.start : stop - block.start]
        self._fetch(start, stop)
        return self._block.content[: stop - start]

    def _fetch(self, start: int, stop: int) -> None:
        if 0 <= start - self._block.end < _WORTH_A_REQUEST:
            self._ahead = min(2 * self._ahead, _LARGEST)
        else:
            self._ahead = max(self._ahead // 2, _SMALLEST)
        end = min(max(stop, start + self._ahead), self._size)
        content = read_range(self._url, start, end) if end > start else b""
        self._block_before, self._block = self._block, _Block(start, content)
        self.num_requests += 1
        self.num_bytes += len(content)


class _Block(NamedTuple):
    start: int
    content: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.content)
