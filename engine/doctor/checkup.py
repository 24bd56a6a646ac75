"""Checkup: every check on all ranks, in order: who is there, what each has, how they reach one another and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.base import ConfigError
from configs.finding import Finding
from engine.doctor.corpora import check_corpus
from engine.doctor.gpus import check_attention, check_gpus
from engine.doctor.network import check_bandwidth, check_clocks, check_ports
from engine.doctor.processes import check_cores, check_ranks, check_room, check_versions
from engine.doctor.shared_folder import check_shared_folder
from engine.doctor.staff import NodeError, Staff
from engine.doctor.tracking import check_tracking
from engine.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the cluster file and the recipe say of this allocation."""

    shared: Path
    data: tuple[str, ...] = ()
    tracking: str | None = None
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    ranks_per_node: int = 1


def examine(world: World, wanted: Wanted) -> list[Finding]:
    """All findings, on every rank. A check that cannot be made is a finding too, and does not stop the others."""
    staff = Staff.of(world)
    return [finding for name, check in _checks(staff, wanted) for finding in _made(name, check, world)]


def _checks(staff: Staff, wanted: Wanted) -> Iterator[tuple[str, Callable[[], Finding]]]:
    yield "ranks", partial(check_ranks, staff, wanted.ranks_per_node)
    yield "versions", partial(check_versions, staff)
    yield "cpus per task", partial(check_cores, staff, wanted.cpus_per_task)
    yield "node", partial(check_room, staff)
    yield "gpus", partial(check_gpus, staff, wanted.gpus_per_node)
    yield "attention", partial(check_attention, staff)
    yield "free ports", partial(check_ports, staff)
    yield "all-reduce", partial(check_bandwidth, staff)
    yield "clocks", partial(check_clocks, staff)
    yield "shared folder", partial(check_shared_folder, staff, wanted.shared)
    for location in wanted.data:
        yield "data", partial(check_corpus, staff, location)
    if wanted.tracking is not None:
        yield "tracking", partial(check_tracking, staff, wanted.tracking)


def _made(name: str, check: Callable[[], Finding], world: World) -> Iterator[Finding]:
    """The finding; where a rank failed, its error, agreed on so that all ranks go on with the same check.

    NOTE: a check talks to other ranks only in steps that all of them reach, or not at all.
    """
    finding, error = None, ""
    try:
        finding = check()
    except NodeError as failure:
        error = str(failure)
    except (OSError, RuntimeError, ValueError, ConfigError) as failure:
        error = f"rank {world.rank}: {type(failure).__name__}: {failure}"
    errors = [text for text in world.gather(error) if text]
    if errors:
        yield Finding(check=name, level="fail", said=errors[0], advice="this check could not be made")
    elif finding is not None:
        yield finding
