"""How long a network takes for one image on the device that it is on: what a latency target is held against."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

_WARM_UP = 3
_MOST_FORWARDS = 50
_MOST_S = 3.0
"""Seconds spent measuring; at least three forwards are timed whatever they take."""


@torch.inference_mode()
def measure_latency(
    model: nn.Module, input_shape: tuple[int, int, int], images: torch.Tensor | None = None
) -> float:
    """Median seconds of a forward of one image [C, H, W] in evaluation mode, after a warm-up; fp32.

    Of `images` in turn where they are given: of some networks an image takes longer than another.
    """
    device = next(model.parameters()).device
    images = torch.zeros(1, *input_shape, device=device) if images is None else images
    was_training = model.training
    model.eval()
    try:
        for _ in range(_WARM_UP):
            model(images[:1])
        return statistics.median(_timed(model, images))
    finally:
        model.train(was_training)


def _timed(model: nn.Module, images: torch.Tensor) -> list[float]:
    taken: list[float] = []
    while len(taken) < 3 or (len(taken) < _MOST_FORWARDS and sum(taken) < _MOST_S):
        place = len(taken) % len(images)
        image = images[place : place + 1]
        wait_for_device(image.device)
        began = time.perf_counter()
        model(image)
        wait_for_device(image.device)
        taken.append(time.perf_counter() - began)
    return taken


def wait_for_device(device: torch.device) -> None:
    """Returns when all that was asked of a GPU is done; a CPU has done it already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
