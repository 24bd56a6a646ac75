"""models.latency: the time of one image, which leaves the network as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.latency import measure_latency
from tests.support.still_clock import StillClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    clock = StillClock()
    monkeypatch.setattr("models.latency.time", clock)
    return clock


class Slow(nn.Module):
    """Takes as long as it is told to, and keeps what it was given."""

    def __init__(self, clock: StillClock, seconds: float) -> None:
        super().__init__()
        self.clock = clock
        self.norm = nn.BatchNorm2d(3)
        self.seconds, self.shapes = seconds, set[tuple[int, ...]]()

    def forward(self, images: Tensor) -> Tensor:
        self.clock.now_s += self.seconds
        self.shapes.add(tuple(images.shape))
        features: Tensor = self.norm(images)
        return features


@pytest.mark.parametrize("is_training", [True, False])
def test_it_is_the_median_time_of_one_image_in_evaluation_mode(is_training: bool, clock: StillClock) -> None:
    model = Slow(clock, 0.02).train(is_training)
    assert measure_latency(model, (3, 8, 8)) == pytest.approx(0.02)
    assert model.shapes == {(1, 3, 8, 8)} and model.training == is_training
    assert torch.equal(model.norm.running_var, torch.ones(3)) and int(model.norm.num_batches_tracked) == 0


def test_images_that_are_given_are_taken_in_turn(clock: StillClock) -> None:
    class Dark(Slow):
        def forward(self, images: Tensor) -> Tensor:
            self.clock.now_s += float(images.mean())
            return super().forward(images)

    model = Dark(clock, 0.0)
    levels = torch.tensor([0.0, 0.04, 0.04])
    images = levels.view(3, 1, 1, 1).expand(3, 3, 8, 8)
    latency_s = measure_latency(model, (3, 8, 8), images)
    assert latency_s == pytest.approx(0.04), "two of three are bright"
    assert model.shapes == {(1, 3, 8, 8)}
