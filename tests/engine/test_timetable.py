"""When things happen in a run, and at which learning rate."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.base import ConfigError
from configs.data import DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, ScheduleConfig, TrainConfig
from engine.timetable import Timetable


def timetable(
    schedule: dict[str, Any] | None = None,
    *,
    steps_per_epoch: int = 10,
    progressive: dict[str, Any] | None = None,
    **train: Any,
) -> Timetable:
    attention = {"progressive": progressive}
    config = RunConfig(
        data=DataConfig(train="x"),
        model=ModelConfig.model_validate({"name": "x", "attention": attention}),
        optim=OptimConfig(lr=1.0),
        schedule=ScheduleConfig.model_validate(schedule or {}),
        train=TrainConfig.model_validate({"duration": "10 epochs", "global_batch": 32, **train}),
    )
    return Timetable.of(config, steps_per_epoch=steps_per_epoch)


@pytest.mark.parametrize(
    ("duration", "steps"), [("3 epochs", 30), ("1.5 epochs", 15), ("40 steps", 40), ("640 images", 20)]
)
def test_durations_become_steps(duration: str, steps: int) -> None:
    assert timetable(duration=duration).total_steps == steps


def test_cosine_after_linear_warmup_is_the_formula_of_the_paper() -> None:
    table = timetable({"warmup": "10 steps", "min_lr": 0.1})
    assert [table.learning_rate(step) for step in range(10)] == pytest.approx(
        [(s + 1) / 10 for s in range(10)]
    )
    for step in range(10, 100):
        expected = 0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert table.learning_rate(step) == pytest.approx(expected)


def test_linear_goes_straight_down_and_constant_stays() -> None:
    linear, constant = timetable({"name": "linear"}), timetable({"name": "constant", "min_lr": 0.3})
    assert linear.learning_rate(50) == pytest.approx(0.5)
    assert constant.learning_rate(99) == 1.0


@pytest.mark.parametrize(
    ("decay", "decay_steps"), [({}, 10), ({"decay": "2 epochs"}, 20), ({"decay": "640 images"}, 20)]
)
def test_wsd_warms_up_stays_and_goes_straight_down_at_the_end(decay: Any, decay_steps: int) -> None:
    table = timetable({"name": "wsd", "warmup": "5 steps", "min_lr": 0.1, **decay})
    start = 100 - decay_steps
    assert [table.learning_rate(step) for step in (4, 5, start - 1, start)] == [1.0] * 4
    for step in range(start, 100):
        assert table.learning_rate(step) == pytest.approx(1.0 - 0.9 * (step - start) / decay_steps)


def test_a_decay_that_does_not_fit_behind_the_warmup_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"schedule.decay: 60 steps after 50 of warm-up .* 100 steps"):
        timetable({"name": "wsd", "warmup": "5 epochs", "decay": "6 epochs"})


def test_a_decay_without_wsd_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"decay is of schedule.name: wsd; cosine has none"):
        ScheduleConfig.model_validate({"decay": "1 epoch"})


@settings(deadline=None)
@given(
    name=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    warmup=st.integers(0, 90),
    min_lr=st.floats(0, 1),
    step=st.integers(0, 99),
)
def test_the_rate_never_leaves_the_range_between_zero_and_its_peak(
    name: str, warmup: int, min_lr: float, step: int
) -> None:
    table = timetable({"name": name, "warmup": f"{warmup} steps", "min_lr": min_lr})
    rate = table.learning_rate(step)
    assert 0 <= rate <= 1.0 + 1e-12
    if step >= warmup:
        assert rate >= min_lr - 1e-12


def test_everything_regular_is_also_due_at_the_end() -> None:
    table = timetable(duration="25 steps", evaluate_every="10 steps")
    assert [s for s in range(1, 26) if table.is_due(table.evaluate_every, s)] == [10, 20, 25]


def test_a_duration_under_one_step_is_an_error_that_names_it() -> None:
    with pytest.raises(
        ConfigError, match=r"train.evaluate_every: '1 images' is less than one optimizer step"
    ):
        timetable(evaluate_every="1 images")


def test_a_warmup_as_long_as_the_run_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"schedule.warmup: '10 epochs' is 100 steps"):
        timetable({"warmup": "10 epochs"})


@pytest.mark.parametrize(
    ("progressive", "expected"),
    [
        ({"over": "10 epochs"}, (100, None, 1)),
        ({"over": "1600 images", "fade": "1 epoch", "start": 0}, (50, 10, 0)),
        ({"over": "7 steps", "fade": "7 steps"}, (7, 7, 1)),
    ],
)
def test_layers_of_attention_come_in_at_steps(progressive: dict[str, Any], expected: tuple[Any, ...]) -> None:
    activation = timetable(progressive=progressive).activation
    assert activation is not None
    assert (activation.over_steps, activation.fade_steps, activation.start) == expected
    assert timetable().activation is None


@pytest.mark.parametrize(
    ("progressive", "said"),
    [
        (
            {"over": "11 epochs"},
            r"progressive.over: '11 epochs' is 110 steps, the whole run \('10 epochs'\) is 100",
        ),
        (
            {"over": "1 epoch", "fade": "20 steps"},
            r"progressive.fade: one layer \('20 steps', 20 steps\) .* 10 steps",
        ),
        ({"over": "5 images"}, r"progressive.over: '5 images' is less than one optimizer step"),
    ],
)
def test_layers_that_do_not_fit_into_the_run_are_an_error(progressive: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        timetable(progressive=progressive)
