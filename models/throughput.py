"""How many images a second a network takes, in the batch that suits its device best."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.latency import wait_for_device

_MOST_IMAGES = 1024
_WORTH = 1.03
"""A doubled batch that gains less is not tried further."""
_MOST_S = 1.5
"""A batch whose forward takes longer is the last."""
_TIMED_S = 0.2
_LEAST_FORWARDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The best that was found."""

    batch_size: int
    images_per_s: float


@torch.inference_mode()
def measure_throughput(
    model: nn.Module, input_shape: tuple[int, int, int], images: Tensor | None = None
) -> Throughput:
    """The fastest of the batches 1, 2, 4 ... for images [C, H, W], evaluation mode, fp32, warm, median of forwards.

    Batches are of `images` over and over where they are given. The search ends where doubling gains nothing any more
    twice in a row, or where memory ends.
    """
    best, disappointments, batch_size = Throughput(batch_size=1, images_per_s=0.0), 0, 1
    while batch_size <= _MOST_IMAGES and disappointments < 2:
        try:
            forward_s = _median_forward_s(model, _batch(model, batch_size, input_shape, images))
        except torch.OutOfMemoryError:
            break
        rate = batch_size / forward_s
        disappointments = 0 if rate > _WORTH * best.images_per_s else disappointments + 1
        if rate > best.images_per_s:
            best = Throughput(batch_size=batch_size, images_per_s=rate)
        if forward_s > _MOST_S:
            break
        batch_size *= 2
    return best


def _batch(model: nn.Module, size: int, input_shape: tuple[int, ...], images: Tensor | None) -> Tensor:
    device = next(model.parameters()).device
    if images is None:
        return torch.zeros(size, *input_shape, device=device)
    return images[torch.arange(size, device=images.device) % len(images)].to(device)


def _median_forward_s(model: nn.Module, images: Tensor) -> float:
    model(images)
    durations: list[float] = []
    while len(durations) < _LEAST_FORWARDS or sum(durations) < _TIMED_S:
        wait_for_device(images.device)
        began = time.perf_counter()
        model(images)
        wait_for_device(images.device)
        durations.append(time.perf_counter() - began)
        if durations[0] > _MOST_S:
            break
    return sorted(durations)[len(durations) // 2]
