"""models.throughput: the batch that is fastest, found without trying all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.throughput import measure_throughput
from tests.support.still_clock import StillClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    clock = StillClock()
    monkeypatch.setattr("models.throughput.time", clock)
    return clock


class Timed(nn.Module):
    """A forward takes a while for the call, and a while for each image above some number."""

    def __init__(
        self,
        clock: StillClock,
        *,
        call_s: float,
        free_images: int,
        image_s: float,
        most_images: int = 10_000,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.place = nn.Parameter(torch.zeros(1))
        self.call_s, self.free_images, self.image_s, self.most_images = (
            call_s,
            free_images,
            image_s,
            most_images,
        )
        self.tried = set[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.tried.add(len(images))
        if len(images) > self.most_images:
            raise torch.OutOfMemoryError("no memory")
        self.clock.now_s += self.call_s + self.image_s * max(0, len(images) - self.free_images)
        return images


def test_the_search_ends_soon_after_doubling_gains_nothing(clock: StillClock) -> None:
    model = Timed(clock, call_s=0.02, free_images=4, image_s=0.02)
    found = measure_throughput(model, (1, 2, 2))
    assert found.batch_size == 4 and found.images_per_s == pytest.approx(200)
    assert model.tried == {1, 2, 4, 8, 16}


def test_a_batch_that_does_not_fit_into_memory_ends_it_too(clock: StillClock) -> None:
    model = Timed(clock, call_s=0.02, free_images=64, image_s=0.0, most_images=4)
    assert measure_throughput(model, (1, 2, 2)).batch_size == 4
    assert model.tried == {1, 2, 4, 8}


def test_batches_are_of_the_images_given_over_and_over(clock: StillClock) -> None:
    class Seen(Timed):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) == 4:
                assert images.flatten().tolist() == [0.0, 1.0, 2.0, 0.0]
            return super().forward(images)

    model = Seen(clock, call_s=0.02, free_images=4, image_s=0.02)
    images = torch.arange(3.0).view(3, 1, 1, 1)
    assert measure_throughput(model, (1, 1, 1), images).batch_size == 4
