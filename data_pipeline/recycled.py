"""Recycled: blocks of memory that are used again once nobody holds them; a fresh page costs more than filling it.

The kernel zeroes each page at its first touch: 7 ms for a batch of 64 images of 224 pixels, and five times that for the
same batch as float32, as long as decoding a dozen of its images.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FLAG_BYTES = 64
"""In front of a shared block; the first byte says that it is in use. A cache line, so that the block stays aligned."""
_FREE, _IN_USE = 0, 1


class Recycled:
    """Blocks of one process, all of the size asked for last; not for several threads."""

    def __init__(self) -> None:
        self._size = 0
        self._free: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> Tensor:
        """uint8 [size], whatever was in it before; used again when the last tensor that shares its memory is gone."""
        if size != self._size:
            self._size, self._free = size, []
        block = self._free.pop() if self._free else torch.empty(size, dtype=torch.uint8).numpy()
        # torch holds the array it was made from for as long as any tensor shares that memory.
        held = block[:]
        weakref.finalize(held, self._free.append, block).atexit = False
        return torch.from_numpy(held)


class SharedRecycled:
    """Blocks that this process fills and another one reads: `take` here, send it, and there `receive`."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """uint8 [size] in shared memory; used again when no tensor of its receiver shares it any more."""
        self._blocks = [block for block in self._blocks if len(block) == _FLAG_BYTES + size]
        block = next((block for block in self._blocks if block[0] == _FREE), None)
        if block is None:
            block = _whole(torch.UntypedStorage._new_shared(_FLAG_BYTES + size))
            self._blocks.append(block)
        block[0] = _IN_USE
        return block[_FLAG_BYTES:]


def receive(block: Tensor) -> Tensor:
    """A block of SharedRecycled, as it arrived -> the same, which its sender may use again when it is gone."""
    whole = _whole(block.untyped_storage())
    held = whole.numpy()[_FLAG_BYTES:]
    weakref.finalize(held, whole[:1].fill_, _FREE).atexit = False
    return torch.from_numpy(held)


def _whole(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
