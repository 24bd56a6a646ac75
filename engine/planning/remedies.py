"""Remedies: why a run does not fit the machines or the time it is to have, and what would make it fit. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.base import ConfigError
from configs.training import RunConfig
from engine.planning.accelerator import GIB
from engine.planning.workload import (
    RESERVE_GIB,
    RankMemory,
    Request,
    Workload,
    changed,
    rank_memory,
    settings_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a run cannot be as it was asked for."""

    text: str
    remedies: tuple[str, ...] = ()
    """Changes each of which would be enough."""


def find_problems(
    config: RunConfig, workload: Workload, request: Request, *, memory: RankMemory, hours: float | None
) -> tuple[Problem, ...]:
    """What keeps a run from being as it was asked for; empty where nothing does."""
    found = (
        _checkpointing_problem(config, workload),
        _memory_problem(config, workload, request, memory),
        _time_problem(config, request, hours),
    )
    return tuple(problem for problem in found if problem is not None)


def _checkpointing_problem(config: RunConfig, workload: Workload) -> Problem | None:
    if not config.train.activation_checkpointing or workload.checkpointed is not None:
        return None
    return Problem(
        text=f"train.activation_checkpointing: model.name {config.model.name!r} cannot do it",
        remedies=("train.activation_checkpointing=false",),
    )


def _memory_problem(
    config: RunConfig, workload: Workload, request: Request, memory: RankMemory
) -> Problem | None:
    if request.memory_gib is None:
        return None
    usable = int((request.memory_gib - RESERVE_GIB) * GIB)
    if memory.peak <= usable:
        return None
    enough = dict[str, str]()
    for change in _changes(config, workload, request):
        if change.kind not in enough and change.peak(config, workload) <= usable:
            enough[change.kind] = change.name
    return Problem(
        text=(
            f"memory: a GPU has to hold {memory.peak / GIB:.1f} GiB and has {usable / GIB:.1f} GiB "
            f"({request.memory_gib:g} less {RESERVE_GIB:g} for CUDA and NCCL)"
        ),
        remedies=tuple(enough.values()) or _all_together(config, workload, request, usable),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One thing to do otherwise."""

    kind: str
    name: str
    num_ranks: int
    train: Mapping[str, Any] = field(default_factory=dict)
    zero: Mapping[str, Any] = field(default_factory=dict)

    def peak(self, config: RunConfig, workload: Workload) -> float:
        """Bytes a GPU has to hold after it; infinite where the recipe does not allow it."""
        try:
            after = changed(config, train=self.train, zero=self.zero)
            return rank_memory(after, workload, self.num_ranks).peak
        except (ConfigError, ValueError):
            return math.inf


def _changes(config: RunConfig, workload: Workload, request: Request) -> Iterator[_Change]:
    """Of each kind the mildest first."""
    ranks = request.num_ranks
    current = int(settings_of(config, workload, ranks)["train_micro_batch_size_per_gpu"])
    for size in _smaller_shares(config.train.global_batch // ranks, current):
        name = f"train.micro_batch={size}"
        yield _Change(kind="micro_batch", name=name, num_ranks=ranks, train={"micro_batch": size})
    for stage in range(config.zero.stage + 1, 4):
        yield _Change(kind="stage", name=f"zero.stage={stage}", num_ranks=ranks, zero={"stage": stage})
    if config.zero.stage > 0 and config.zero.offload == "none":
        offload = {"offload": "optimizer"}
        yield _Change(kind="offload", name="zero.offload=optimizer", num_ranks=ranks, zero=offload)
    if workload.checkpointed is not None and not config.train.activation_checkpointing:
        name = "train.activation_checkpointing=true"
        yield _Change(
            kind="activations", name=name, num_ranks=ranks, train={"activation_checkpointing": True}
        )
    for nodes in _more_nodes(config, request):
        yield _Change(kind="nodes", name=f"--nodes {nodes}", num_ranks=nodes * request.gpus_per_node)


def _all_together(config: RunConfig, workload: Workload, request: Request, usable: int) -> tuple[str, ...]:
    """Everything that saves memory on these machines, where no single change is enough; nothing if that is not."""
    smallest = _pair_or_one(config)
    train: dict[str, Any] = {"micro_batch": smallest}
    if workload.checkpointed is not None:
        train["activation_checkpointing"] = True
    zero = {"stage": 3, "offload": "parameters"}
    name = f"train.micro_batch={smallest} zero.stage=3 zero.offload=parameters"
    name += " train.activation_checkpointing=true" if workload.checkpointed is not None else ""
    change = _Change(kind="all", name=name, num_ranks=request.num_ranks, train=train, zero=zero)
    return (name,) if change.peak(config, workload) <= usable else ()


def _smaller_shares(share: int, current: int) -> list[int]:
    """Micro-batches below the current one that divide a rank's share, the largest first."""
    return [size for size in range(current - 1, 0, -1) if share % size == 0]


def _more_nodes(config: RunConfig, request: Request) -> list[int]:
    """Larger numbers of nodes whose ranks can share the batch."""
    units = config.train.global_batch // _pair_or_one(config)
    return [
        nodes
        for nodes in range(request.nodes + 1, units // request.gpus_per_node + 1)
        if units % (nodes * request.gpus_per_node) == 0
    ]


def _pair_or_one(config: RunConfig) -> int:
    """Images that cannot be parted: mixup and cutmix take two."""
    return 2 if config.data.augment.mixes else 1


def _time_problem(config: RunConfig, request: Request, hours: float | None) -> Problem | None:
    if request.hours is None or hours is None or hours <= request.hours:
        return None
    enough = [n for n in _more_nodes(config, request) if hours * request.nodes / n <= request.hours]
    remedies = [f"--nodes {enough[0]}"] if enough else []
    share = request.hours / hours
    remedies.append(f"train.duration={config.train.duration.amount * share:.3g} {config.train.duration.unit}")
    return Problem(
        text=f"time: {hours:.1f} h at an MFU of {request.mfu:g}, and --hours allows {request.hours:g}",
        remedies=tuple(remedies),
    )
