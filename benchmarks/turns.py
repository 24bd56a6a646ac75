"""Two that take turns, each first in half of the rounds: what slows the machine down slows both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import quantiles


def take_turns(
    timed: tuple[Callable[[], float], Callable[[], float]], rounds: int, *, least: int | None = None
) -> list[tuple[float, float]]:
    """What each says that it took in each round, after a round that does not count.

    With `least` there are so many rounds, and no more than `rounds` until their ratios agree.
    """
    found: list[tuple[float, float]] = []
    for index in range(rounds + 1):
        order = (0, 1) if index % 2 else (1, 0)
        seconds = {which: timed[which]() for which in order}
        if index:
            found.append((seconds[0], seconds[1]))
        if least is not None and len(found) >= least and agree(found):
            break
    return found


def agree(pairs: Sequence[tuple[float, float]], *, within: float = 0.02) -> bool:
    """Whether the middle half of the ratios differs by no more than this part of them."""
    low, middle, high = quantiles([one / other for one, other in pairs], method="inclusive")
    return high - low <= within * middle
