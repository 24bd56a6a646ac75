"""Packet: a batch in one block of memory, as a worker fills it and hands it over: no copy, and one small message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from data_pipeline.bad import BadSample
from data_pipeline.batch import Batch

Shape = tuple[int, int, int, int]
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """Sample ids, targets, weights, and [B, S, S, C] pixels: those of the images, and of each further view."""

    block: Tensor
    """NOTE: everything lies in it. Messages stay far below what a pipe takes at once: a worker that is killed while it
    sends a longer one would leave half of it there, for which the training process would wait for ever."""
    shapes: tuple[Shape, ...]
    texts: Tensor | None = None
    """Captions: the end of each, as int64, and then their UTF-8."""
    bad: list[BadSample] = field(default_factory=list)

    @property
    def sample_ids(self) -> Tensor:
        """int64 [B]."""
        return self._numbers(0, torch.int64)

    @property
    def targets(self) -> Tensor:
        """int64 [B]."""
        return self._numbers(1, torch.int64)

    @property
    def weights(self) -> Tensor:
        """float32 [B]."""
        return self._numbers(2, torch.float32)

    def pixels(self, view: int) -> Tensor:
        """uint8 [B, S, S, C] of the images (0) or of a further view."""
        start = _starts(self.shapes)[3 + view]
        shape = self.shapes[view]
        return self.block[start : start + math.prod(shape)].view(shape)

    def batch(self) -> Batch:
        """The batch as the trainer wants it, in the same memory."""
        images, *views = (self.pixels(view).permute(0, 3, 1, 2) for view in range(len(self.shapes)))
        return Batch(
            images=images,
            targets=self.targets,
            sample_ids=self.sample_ids,
            weights=self.weights,
            views=tuple(views),
            captions=None if self.texts is None else _read_texts(self.texts, self.shapes[0][0]),
        )

    def _numbers(self, place: int, dtype: torch.dtype) -> Tensor:
        start = _starts(self.shapes)[place]
        return self.block[start : start + self.shapes[0][0] * dtype.itemsize].view(dtype)


def new_packet(shapes: Sequence[Shape]) -> Packet:
    """A packet of zeros: black images."""
    return Packet(block=_new_block(_starts(shapes)[-1]), shapes=tuple(shapes))


def write_texts(texts: Sequence[bytes]) -> Tensor:
    """Captions as `Packet.texts` holds them."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    written = ends.tobytes() + b"".join(texts)
    block = _new_block(len(written))
    block.numpy()[:] = np.frombuffer(written, np.uint8)
    return block


def _read_texts(block: Tensor, count: int) -> tuple[str, ...]:
    ends: NDArray[np.int64] = block[: 8 * count].view(torch.int64).numpy()
    written = block[8 * count :].numpy().tobytes()
    starts = [0, *ends[:-1].tolist()]
    return tuple(
        written[start:end].decode("utf-8", "replace")
        for start, end in zip(starts, ends.tolist(), strict=True)
    )


def _starts(shapes: Sequence[Shape]) -> list[int]:
    """Where each part of a block starts; then the size of the whole."""
    count = shapes[0][0]
    starts = [0]
    for size in (8 * count, 8 * count, 4 * count, *map(math.prod, shapes)):
        starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return starts


def _new_block(size: int) -> Tensor:
    # Shared from the start, so that it reaches the training process without a copy; zeroed by the kernel.
    if get_worker_info() is None:
        return torch.zeros(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size)).view(size)
