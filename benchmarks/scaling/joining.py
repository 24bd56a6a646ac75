"""Ranks that meet: process groups of gloo with every rank in a thread of this process; their sockets and their time.

Each rank is a real member of a real group: it asks the store, connects, and takes part in an all-reduce.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

LAZY = "TORCH_GLOO_LAZY_INIT"
"""Set to 1, torch connects two ranks when they first speak to each other, instead of all with all at the start."""
_TIMEOUT = timedelta(minutes=2)


def join_best(num_ranks: int, *, rounds: int) -> dict[str, float]:
    """The quickest of the rounds: other work on the machine is not the group's doing."""
    found = min((join(num_ranks) for _ in range(rounds)), key=lambda one: one["join_s"])
    return {"ranks": num_ranks, **found}


def join(num_ranks: int) -> dict[str, float]:
    """Seconds until the group stands and until its first all-reduce is through; open sockets of all ranks then."""
    store = dist.HashStore()
    groups: list[dist.ProcessGroupGloo | None] = [None] * num_ranks
    before = _num_sockets()

    def enter(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, num_ranks, _TIMEOUT)

    def reduce(rank: int) -> None:
        group = groups[rank]
        if group is None:
            raise RuntimeError(f"rank {rank} could not join")
        group.allreduce([torch.ones(1)]).wait()

    joined_s = _on_all(num_ranks, enter)
    reduced_s = _on_all(num_ranks, reduce)
    return {"join_s": joined_s, "first_reduce_s": reduced_s, "sockets": float(_num_sockets() - before)}


def _on_all(num_ranks: int, work: Callable[[int], None]) -> float:
    """Seconds that all ranks take together."""
    problems: list[Exception] = []

    def guarded(rank: int) -> None:
        try:
            work(rank)
        except Exception as problem:  # told by the main thread
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(num_ranks)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return time.perf_counter() - start


def _num_sockets() -> int:
    return sum(_is_socket(entry) for entry in Path("/proc/self/fd").iterdir())


def _is_socket(entry: Path) -> bool:
    try:
        return os.readlink(entry).startswith("socket:")
    except OSError:  # the descriptor that lists the folder itself
        return False
