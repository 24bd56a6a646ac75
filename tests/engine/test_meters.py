"""What the steps between two reports amount to."""

from __future__ import annotations

import pytest
import torch

from engine.meters import Meter
from engine.objective import Loss
from engine.world import World


def loss(total: float, part: float) -> Loss:
    return Loss(total=torch.tensor(total), parts={"attention": torch.tensor(part)})


def test_a_report_is_the_mean_since_the_last_one(world: World) -> None:
    meter = Meter(world, global_batch=10)
    for total in (1.0, 2.0, 6.0):
        meter.add(loss(total, total / 2))
        meter.step_done()
    values = meter.report()
    assert values["train/loss"] == pytest.approx(3.0)
    assert values["train/attention"] == pytest.approx(1.5)
    assert values["perf/images_per_s"] > 0
    meter.add(loss(5.0, 5.0))
    assert meter.report()["train/loss"] == 5.0


def test_what_is_not_finite_stays_out_of_the_mean(world: World) -> None:
    meter = Meter(world, global_batch=10)
    for total in (1.0, float("nan"), float("inf"), 3.0):
        meter.add(loss(total, 1.0))
    assert meter.report()["train/loss"] == 2.0


def test_an_interrupted_interval_goes_on_as_if_it_had_not_been(world: World) -> None:
    first, second = Meter(world, global_batch=10), Meter(world, global_batch=10)
    first.add(loss(1.0, 1.0))
    second.load_state_dict(first.state_dict())
    second.add(loss(4.0, 1.0))
    assert second.report()["train/loss"] == 2.5


def test_waiting_for_data_counts_and_a_pause_counts_for_nothing(world: World) -> None:
    meter = Meter(world, global_batch=10)
    meter.add(loss(1.0, 1.0))
    busy = torch.randn(400, 400)
    with meter.waiting_for_data():
        while float((busy @ busy).sum()) == 0.123:
            pass
    with meter.paused():
        for _ in range(50):
            busy @ busy
    values = meter.report()
    assert 0.0 < values["perf/data_wait_fraction"] <= 1.0


def test_utilization_is_what_was_computed_of_what_the_devices_can(world: World) -> None:
    meter = Meter(world, global_batch=10, flops_per_image=3e9, peak_flops=1e12)
    meter.add(loss(1.0, 1.0))
    meter.step_done()
    values = meter.report()
    assert values["perf/mfu"] == pytest.approx(values["perf/images_per_s"] * 3e9 / 1e12)
    assert values["perf/step_s"] == pytest.approx(10 / values["perf/images_per_s"])
    assert "perf/mfu" not in _reported_by(Meter(world, global_batch=10, flops_per_image=3e9))


def _reported_by(meter: Meter) -> dict[str, float]:
    meter.add(loss(1.0, 1.0))
    return meter.report()
