"""Packet: a batch in one block of memory, as a worker fills it and hands it over: no copy, and one small message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from data_pipeline.bad import BadSample
from data_pipeline.batch import Batch
from data_pipeline.mix import Mix
from data_pipeline.recycled import Recycled, SharedRecycled, receive

Shape = tuple[int, int, int, int]
_ALIGNMENT = 64

_COLUMNS: tuple[tuple[int, torch.dtype], ...] = (
    *[(1, torch.int64)] * 4,  # sample ids, targets, epochs, copies
    *[(1, torch.float32)] * 2,  # weights, shares
    (4, torch.int64),  # boxes
)
"""What lies before the pixels: how many numbers per sample, and of which type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """Numbers about each sample, [B, S, S, C] pixels of the images and of each further view, and records."""

    block: Tensor
    """NOTE: everything lies in it. Messages stay far below what a pipe takes at once: a worker that is killed while it
    sends a longer one would leave half of it there, for which the training process would wait for ever."""
    shapes: tuple[Shape, ...]
    record_size: int = 0
    """Bytes that a `Sidecar` keeps beside each image."""
    mixed: bool = False
    """Whether `shares` and `boxes` say something."""
    texts: Tensor | None = None
    """Captions: the end of each, as int64, and then their UTF-8."""
    bad: list[BadSample] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.block, self.shapes, self.record_size, self.mixed, self.texts, self.bad)

    @property
    def sample_ids(self) -> Tensor:
        """int64 [B]."""
        return self._column(0)

    @property
    def targets(self) -> Tensor:
        """int64 [B]."""
        return self._column(1)

    @property
    def epochs(self) -> Tensor:
        """int64 [B]."""
        return self._column(2)

    @property
    def copies(self) -> Tensor:
        """int64 [B]."""
        return self._column(3)

    @property
    def weights(self) -> Tensor:
        """float32 [B]."""
        return self._column(4)

    @property
    def shares(self) -> Tensor:
        """float32 [B], of `Mix`."""
        return self._column(5)

    @property
    def boxes(self) -> Tensor:
        """int64 [B, 4], of `Mix`."""
        return self._column(6).view(-1, 4)

    @property
    def records(self) -> Tensor:
        """uint8 [B, record_size]."""
        count, start = self.shapes[0][0], _starts(self.shapes, self.record_size)[-2]
        return self.block[start : start + count * self.record_size].view(count, self.record_size)

    def pixels(self, view: int) -> Tensor:
        """uint8 [B, S, S, C] of the images (0) or of a further view."""
        start = _starts(self.shapes, self.record_size)[len(_COLUMNS) + view]
        shape = self.shapes[view]
        return self.block[start : start + math.prod(shape)].view(shape)

    def batch(self) -> Batch:
        """The batch as the trainer wants it, in the same memory."""
        images, *views = (self.pixels(view).permute(0, 3, 1, 2) for view in range(len(self.shapes)))
        return Batch(
            images=images,
            targets=self.targets,
            sample_ids=self.sample_ids,
            epochs=self.epochs,
            copies=self.copies,
            weights=self.weights,
            views=tuple(views),
            captions=None if self.texts is None else _read_texts(self.texts, self.shapes[0][0]),
            mix=Mix(shares=self.shares, boxes=self.boxes) if self.mixed else None,
            records=self.records if self.record_size else None,
        )

    def _column(self, place: int) -> Tensor:
        (width, dtype), start = _COLUMNS[place], _starts(self.shapes, self.record_size)[place]
        return self.block[start : start + self.shapes[0][0] * width * dtype.itemsize].view(dtype)


class Packets:
    """Makes the packets of one process, in memory that is used again once their batches are gone."""

    def __init__(self) -> None:
        self._shared, self._own = SharedRecycled(), Recycled()

    def new(self, shapes: Sequence[Shape], *, record_size: int = 0) -> Packet:
        """A packet to fill: what lies in it is that of an earlier one."""
        size = _starts(shapes, record_size)[-1]
        take = self._own.take if get_worker_info() is None else self._shared.take
        return Packet(block=take(size), shapes=tuple(shapes), record_size=record_size)


def write_texts(texts: Sequence[bytes]) -> Tensor:
    """Captions as `Packet.texts` holds them."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    written = ends.tobytes() + b"".join(texts)
    block: Tensor = torch.empty(len(written), dtype=torch.uint8).share_memory_()
    block.numpy()[:] = np.frombuffer(written, np.uint8)
    return block


def _received(
    block: Tensor,
    shapes: tuple[Shape, ...],
    record_size: int,
    mixed: bool,
    texts: Tensor | None,
    bad: list[BadSample],
) -> Packet:
    return Packet(
        block=receive(block), shapes=shapes, record_size=record_size, mixed=mixed, texts=texts, bad=bad
    )


def _read_texts(block: Tensor, count: int) -> tuple[str, ...]:
    ends: NDArray[np.int64] = block[: 8 * count].view(torch.int64).numpy()
    written = block[8 * count :].numpy().tobytes()
    starts = [0, *ends[:-1].tolist()]
    return tuple(
        written[start:end].decode("utf-8", "replace")
        for start, end in zip(starts, ends.tolist(), strict=True)
    )


def _starts(shapes: Sequence[Shape], record_size: int) -> list[int]:
    """Where each part of a block starts; then the size of the whole."""
    count = shapes[0][0]
    starts = [0]
    columns = (count * width * dtype.itemsize for width, dtype in _COLUMNS)
    for size in (*columns, *map(math.prod, shapes), count * record_size):
        starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return starts
