"""Batch: the images of one step and what is known about them; and their normalization on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from data_pipeline.mix import Mix
from data_pipeline.recycled import Recycled

_PART = 1 << 17
"""Numbers normalized at a time on a CPU: as float32 half a megabyte, which a core's second cache holds."""

_recycled = Recycled()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One rank's share of a global batch."""

    images: Tensor
    """uint8 [B, C, H, W]; colour images lie channels-last in memory."""
    targets: Tensor
    """int64 [B]; -1 where no label may be used."""
    sample_ids: Tensor
    """int64 [B]; position in the index, stable for ever; -1 for padding."""
    epochs: Tensor
    """int64 [B]; how often the sample's corpus was gone through before: with `copies` and the run's seed, what a
    sample's random numbers are a function of. 0 in evaluation."""
    copies: Tensor
    """int64 [B]; which of its copies in this pass (``data.repeats``) each is, from 0."""
    weights: Tensor
    """float32 [B]; 0 for padding and for what could not be decoded in evaluation, else 1."""
    views: tuple[Tensor, ...] = ()
    """Further crops of the same images (``data.augment.views``), each uint8 [B, C, S, S] of a size of its own."""
    captions: tuple[str, ...] | None = None
    """What stands in each sample's ``.txt``, "" where it has none; None unless ``data.captions``."""
    mix: Mix | None = None
    """How neighbours are to be mixed (`mix_images`); None where ``data.augment`` mixes nothing, and in evaluation."""
    records: Tensor | None = None
    """uint8 [B, n]; what a `Sidecar` keeps beside each image, as it is varied here; None where there is none."""

    @property
    def label_shares(self) -> Tensor | None:
        """float32 [B]: how much of each image is its own and not its neighbour's; None where nothing is mixed."""
        return None if self.mix is None else self.mix.shares

    def __len__(self) -> int:
        return len(self.sample_ids)

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` images, in order; of mixed batches each holds whole pairs."""
        if size < 1:
            raise ValueError(f"a micro-batch needs at least 1 image, not {size}")
        if self.mix is not None and size % 2:
            raise ValueError(f"a micro-batch of {size} images would part neighbours that are to be mixed")
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _part(self, slots: slice) -> Batch:
        captions = None if self.captions is None else self.captions[slots]
        return replace(self._each(lambda tensor: tensor[slots]), captions=captions)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            targets=change(self.targets),
            sample_ids=change(self.sample_ids),
            epochs=change(self.epochs),
            copies=change(self.copies),
            weights=change(self.weights),
            views=tuple(change(view) for view in self.views),
            mix=None if self.mix is None else self.mix.each(change),
            records=None if self.records is None else change(self.records),
        )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images [B, C, H, W] -> float32, scaled to 0..1, minus `mean`, divided by `std`, where the images lie."""
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    if images.device.type == "cpu":
        return _normalize_here(images, scale, shift)
    return images.to(torch.float32).mul_(scale).add_(shift)


def _normalize_here(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # The same operations, ten times as fast: on a part at a time, which stays in the cache, in rows as they lie in
    # memory, into memory whose pages are there already.
    nhwc = images.permute(0, 2, 3, 1)
    batch, height, width, channels = nhwc.shape
    rows = nhwc.reshape(batch * height, width * channels)
    scales, shifts = scale.view(-1).repeat(width), shift.view(-1).repeat(width)
    scaled = _recycled.take(4 * rows.numel()).view(torch.float32).view(rows.shape)
    step = max(1, _PART // (width * channels))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scaled[part].copy_(rows[part]).mul_(scales).add_(shifts)
    return scaled.view(batch, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached because a copy of host constants to a GPU would synchronize in every step.
    mean_c11 = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
    std_c11 = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
    scale, shift = 1.0 / (255.0 * std_c11), -mean_c11 / std_c11
    return scale.to(device, torch.float32), shift.to(device, torch.float32)
