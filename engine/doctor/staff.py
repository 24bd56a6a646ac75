"""Staff: the ranks and where they are; one rank of each node speaks for it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from configs.base import ConfigError
from engine.world import World

Value = TypeVar("Value")


class NodeError(RuntimeError):
    """Something that a check needs could not be done on one node; raised on all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staff:
    """All ranks by node, the same on every rank."""

    world: World
    nodes: tuple[str, ...]
    """The node of each rank, by rank."""

    @classmethod
    def of(cls, world: World) -> Staff:
        """Asks every rank; all together."""
        # NOTE: SLURM's name, because several nodes of a test cluster may share one host.
        return cls(
            world=world, nodes=tuple(world.gather(os.environ.get("SLURMD_NODENAME") or socket.gethostname()))
        )

    @property
    def leaders(self) -> tuple[int, ...]:
        """The first rank of each node."""
        return tuple(self.nodes.index(node) for node in dict.fromkeys(self.nodes))

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks for its node."""
        return self.world.rank in self.leaders

    @property
    def ranks_by_node(self) -> Mapping[str, int]:
        """How many ranks each node has."""
        return Counter(self.nodes)

    def ask(self, look: Callable[[], Value]) -> list[Value]:
        """What every rank sees, by rank, on every rank; NodeError on all of them where it fails on one."""
        seen: list[Value] = []
        error = ""
        try:
            seen.append(look())
        except (OSError, RuntimeError, ValueError, ConfigError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        answers = self.world.gather((seen, error))
        self.raise_first([error for _, error in answers])
        return [value for values, _ in answers for value in values]

    def raise_first(self, errors: Sequence[str]) -> None:
        """NodeError naming the first node with an error."""
        for node, error in zip(self.nodes, errors, strict=True):
            if error:
                raise NodeError(f"node {node}: {error}")


def differing(values: Sequence[Value], nodes: Sequence[str]) -> str:
    """``a on n1, n2; b on n3``; empty where all are the same."""
    if len(set(values)) <= 1:
        return ""
    places: dict[Value, dict[str, None]] = {}
    for value, node in zip(values, nodes, strict=True):
        places.setdefault(value, {})[node] = None
    return "; ".join(f"{value} on {', '.join(where)}" for value, where in places.items())
