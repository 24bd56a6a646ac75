"""Two that take turns, each first in half of the rounds: what slows the machine down slows both."""

from __future__ import annotations

from collections.abc import Callable


def take_turns(
    timed: tuple[Callable[[], float], Callable[[], float]], rounds: int
) -> list[tuple[float, float]]:
    """What each says that it took in each round, after a round that does not count."""
    found = []
    for index in range(rounds + 1):
        order = (0, 1) if index % 2 else (1, 0)
        seconds = {which: timed[which]() for which in order}
        found.append((seconds[0], seconds[1]))
    return found[1:]
