"""RangedFile: a remote file as bytes at an offset, of which only what is asked for is fetched, and a little more."""

from __future__ import annotations

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
        self._start = 0
        self._held = b""
        self._ahead = _SMALLEST
        self.num_requests = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self._size)
        if not self._start <= start <= stop <= self._start + len(self._held):
            self._fetch(start, stop)
        return self._held[start - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> None:
        jump = start - (self._start + len(self._held))
        if 0 <= jump < _WORTH_A_REQUEST:
            self._ahead = min(2 * self._ahead, _LARGEST)
        else:
            self._ahead = max(self._ahead // 2, _SMALLEST)
        end = min(max(stop, start + self._ahead), self._size)
        self._start, self._held = start, read_range(self._url, start, end) if end > start else b""
        self.num_requests += 1
        self.num_bytes += len(self._held)
