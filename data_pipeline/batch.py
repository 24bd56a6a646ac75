"""Batch: the images of one step and what is known about them; and their normalization on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One rank's share of a global batch."""

    images: Tensor
    """uint8 [B, C, H, W]; colour images lie channels-last in memory."""
    targets: Tensor
    """int64 [B]; -1 where no label may be used."""
    sample_ids: Tensor
    """int64 [B]; position in the index, stable for ever; -1 for padding."""
    weights: Tensor
    """float32 [B]; 0 for padding and for what could not be decoded in evaluation, else 1."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` images, in order."""
        if size < 1:
            raise ValueError(f"a micro-batch needs at least 1 image, not {size}")
        parts = [torch.split(tensor, size) for tensor in self._tensors()]
        return [_from_tensors(*tensors) for tensors in zip(*parts, strict=True)]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; from pinned memory the copy does not block."""
        return _from_tensors(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return _from_tensors(*(tensor.pin_memory() for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.images, self.targets, self.sample_ids, self.weights


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images -> float32, scaled to 0..1, minus `mean`, divided by `std`, where the images lie."""
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32).mul_(scale).add_(shift)


def _from_tensors(images: Tensor, targets: Tensor, sample_ids: Tensor, weights: Tensor) -> Batch:
    return Batch(images=images, targets=targets, sample_ids=sample_ids, weights=weights)


@lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached because a copy of host constants to a GPU would synchronize in every step.
    mean_c11 = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
    std_c11 = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
    scale, shift = 1.0 / (255.0 * std_c11), -mean_c11 / std_c11
    return scale.to(device, torch.float32), shift.to(device, torch.float32)
