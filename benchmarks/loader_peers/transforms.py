"""The two torchvision pipelines that several loaders do the task with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.loader_peers.task import MEAN, RATIO, SCALE, SIZE, STD


def pil_transform(form: str, *, photometric: Iterable[Any] = (), after: Iterable[Any] = ()) -> Any:
    """PIL image -> tensor, as torchvision's reference for ImageNet has it; bilinear and antialiased."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO),
            v2.RandomHorizontalFlip(),
            *photometric,
            v2.PILToTensor(),
            *_finish(form),
            *after,
        ]
    )


def tensor_transform(form: str) -> Any:
    """uint8 [3, H, W] -> tensor."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
            *_finish(form),
        ]
    )


def decode_with_torchvision(data: bytes) -> torch.Tensor:
    """JPEG bytes -> uint8 [3, H, W]."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> float32, for loaders that have no way of their own."""
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return images.to(torch.float32).sub_(mean).div_(std)


def _finish(form: str) -> list[Any]:
    return [] if form == "uint8" else [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
