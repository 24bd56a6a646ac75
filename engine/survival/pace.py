"""Pace: how long each rank takes for what it does alone, and which ones the others wait for.

In a synchronous loop every rank's step lasts as long as the slowest one's. What tells them apart is what comes before
the first communication: waiting for data, forward pass and objective.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.world import World

SLOW = 1.25
"""A rank whose own time is above this many times the median rank's ..."""
NOTICEABLE = 0.1
"""... by more than this fraction of a step is a straggler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One rank's own time, in seconds per step."""

    rank: int
    host: str
    data_wait_s: float
    compute_s: float

    @property
    def own_s(self) -> float:
        """What passes before the rank waits for others."""
        return self.data_wait_s + self.compute_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank that the others wait for."""

    share: Share
    median_s: float
    """Own time of the median rank."""

    def __str__(self) -> str:
        share, late_s = self.share, self.share.own_s - self.median_s
        waiting = share.data_wait_s / share.own_s
        return (
            f"rank {share.rank} (host {share.host}) is slow: the others wait {late_s:.3f} s for it in each step; "
            f"of its own {share.own_s:.3f} s before backward, {waiting:.0%} is waiting for data and "
            f"{1 - waiting:.0%} computing (median rank: {self.median_s:.3f} s)"
        )


class Pace:
    """Times this rank's own work without waiting for its device; the ranks compare theirs when they report.

    At ZeRO stage 3 (`gathers_in_forward`) the forward pass itself waits for other ranks: only data waits are compared.
    NOTE: on a GPU a wait for data counts even where the device had enough queued not to notice it.
    """

    def __init__(self, world: World, *, gathers_in_forward: bool = False) -> None:
        self._world = world
        self._gathers_in_forward = gathers_in_forward
        self._host = socket.gethostname()
        self.restart()

    def restart(self) -> None:
        """Begins a run of steps anew; the first is not timed, since workers and kernels start in it."""
        self._is_first = True
        self._clear()

    def waited(self, seconds: float) -> None:
        """Time spent waiting for the loader."""
        self._data_wait_s += seconds

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What is within is this rank's own work: a forward pass and its objective."""
        if self._world.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._marks.append((start, end))
        else:
            start_s = time.perf_counter()
            yield
            self._compute_s += time.perf_counter() - start_s

    def step_done(self) -> None:
        """Counts a step."""
        if self._is_first:
            self._is_first = False
            self._clear()
        else:
            self._steps += 1

    def shares(self) -> list[Share]:
        """Each rank's own time per step since the last call, in rank order; all ranks together.

        NOTE: the device must have done the steps: the report has waited for it just before.
        """
        compute_s = self._compute_s + sum(start.elapsed_time(end) for start, end in self._marks) / 1e3
        steps = max(self._steps, 1)
        own = Share(
            rank=self._world.rank,
            host=self._host,
            data_wait_s=self._data_wait_s / steps,
            compute_s=0.0 if self._gathers_in_forward else compute_s / steps,
        )
        self._clear()
        return self._world.gather(own)

    def _clear(self) -> None:
        self._data_wait_s = self._compute_s = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0


def find_stragglers(shares: Sequence[Share], *, step_s: float) -> list[Straggler]:
    """The ranks that hold up steps of `step_s` seconds, the slowest first.

    With two ranks the faster is the median: one of them can be slow.
    """
    median_s = statistics.median_low(share.own_s for share in shares)
    late = [
        share
        for share in shares
        if share.own_s > SLOW * median_s and share.own_s - median_s > NOTICEABLE * step_s
    ]
    late.sort(key=lambda share: -share.own_s)
    return [Straggler(share=share, median_s=median_s) for share in late]
