"""models.latency: the time of one image, which leaves the network as it was."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from models.latency import measure_latency


class Slow(nn.Module):
    """Takes as long as it is told to, and keeps what it was given."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seconds, self.shapes = seconds, set[tuple[int, ...]]()

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        self.shapes.add(tuple(images.shape))
        features: Tensor = self.norm(images)
        return features


@pytest.mark.parametrize("is_training", [True, False])
def test_it_is_the_median_time_of_one_image_in_evaluation_mode(is_training: bool) -> None:
    model = Slow(0.02).train(is_training)
    assert 0.02 <= measure_latency(model, (3, 8, 8)) < 0.2
    assert model.shapes == {(1, 3, 8, 8)} and model.training == is_training
    assert torch.equal(model.norm.running_var, torch.ones(3)) and int(model.norm.num_batches_tracked) == 0
