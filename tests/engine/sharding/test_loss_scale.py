"""The factor of fp16 losses."""

from __future__ import annotations

from engine.sharding.loss_scale import LossScale


def test_an_overflow_halves_the_factor_and_a_thousand_good_steps_double_it() -> None:
    scale = LossScale(power=3)
    scale.update(overflowed=True)
    assert scale.factor == 4.0
    for _ in range(999):
        scale.update(overflowed=False)
    assert scale.factor == 4.0
    scale.update(overflowed=False)
    assert scale.factor == 8.0


def test_an_overflow_starts_the_count_of_good_steps_anew() -> None:
    scale = LossScale(power=3)
    for _ in range(999):
        scale.update(overflowed=False)
    scale.update(overflowed=True)
    scale.update(overflowed=False)
    assert scale.state_dict() == {"factor": 4.0, "good_steps": 1}


def test_the_factor_stays_between_one_and_two_to_the_32() -> None:
    lowest, highest = LossScale(power=0), LossScale(power=32)
    lowest.update(overflowed=True)
    for _ in range(1000):
        highest.update(overflowed=False)
    assert (lowest.factor, highest.factor) == (1.0, 2.0**32)


def test_a_restored_factor_goes_on_where_it_was() -> None:
    scale, again = LossScale(power=8), LossScale(power=16)
    for overflowed in (False, True, False, False):
        scale.update(overflowed=overflowed)
    again.load_state_dict(scale.state_dict())
    assert again.state_dict() == scale.state_dict() == {"factor": 128.0, "good_steps": 2}
