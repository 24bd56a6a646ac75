"""Patches: images as sequences of squares, and some of them picked out."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, (H / size) * (W / size), size * size * C]: rows of patches, each as rows of pixels."""
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    squares = images.reshape(batch, channels, rows, size, columns, size)
    return squares.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, size * size * channels)


def pick(sequence: Tensor, positions: Tensor) -> Tensor:
    """[B, N, D] at positions int64 [B, M] -> [B, M, D]."""
    return sequence.gather(1, positions.unsqueeze(2).expand(-1, -1, sequence.shape[2]))
