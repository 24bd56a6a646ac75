"""benchmarks.turns: each is first in half of the rounds, and rounds end when their ratios agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.turns import agree, take_turns


def test_each_is_first_in_half_of_the_rounds_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def one() -> float:
        order.append("one")
        return float(len(order))

    def other() -> float:
        order.append("other")
        return float(len(order))

    assert len(take_turns((one, other), 4)) == 4
    assert order == ["other", "one", "one", "other"] * 2 + ["other", "one"]


@pytest.mark.parametrize(
    ("least", "noise", "rounds"), [(None, 0.0, 9), (3, 0.0, 3), (3, 0.5, 9), (20, 0.0, 9)]
)
def test_rounds_end_when_there_are_enough_that_agree(least: int | None, noise: float, rounds: int) -> None:
    def alternating() -> Iterator[float]:
        while True:
            yield from (1.0, 1.0, 1.0 + noise, 1.0 + noise)

    seconds = alternating()
    assert len(take_turns((lambda: next(seconds), lambda: 1.0), 9, least=least)) == rounds


def test_two_in_a_hundred_of_the_middle_half_is_agreement() -> None:
    even = [1.0, 1.005, 1.01, 1.015, 1.02]
    assert agree([(ratio, 1.0) for ratio in (*even, 0.2, 9.0)])
    assert not agree([(1.0, 1.0), (1.03, 1.0), (1.0, 1.0), (1.03, 1.0)])
