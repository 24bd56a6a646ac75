"""Verifies shards against their index: every byte, every key and label, and with `deep` every image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.index import open_index
from data_pipeline.inspection.exclude import read_excluded
from data_pipeline.inspection.shard_check import Fault, ShardCheck, ShardReport, check_shard, list_keys
from data_pipeline.packing.shard_pool import run_over_shards

_SAMPLES_PER_WORKER = 20_000
"""Below this, another process costs more than it brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found in all shards of an index."""

    folder: Path
    shards: tuple[ShardReport, ...]
    num_samples: int
    faults: tuple[Fault, ...]

    @property
    def faulty_shards(self) -> tuple[ShardReport, ...]:
        """Those with faults of their own."""
        return tuple(shard for shard in self.shards if shard.faults)


def verify(location: str, *, deep: bool = False, num_workers: int | None = None) -> Report:
    """Reads every byte of every shard that an index names; `deep` decodes every image too."""
    index = open_index(location)
    excluded = read_excluded(index.folder)
    checks = [
        ShardCheck(
            shard=shard,
            rows=np.array(index.rows(number)),
            excluded=frozenset(excluded.get(shard.name, ())),
            num_classes=len(index.classes),
            deep=deep,
        )
        for number, shard in enumerate(index.shards)
    ]
    shards = run_over_shards(
        check_shard,
        checks,
        num_workers=num_workers or min(os.cpu_count() or 1, 1 + index.num_samples // _SAMPLES_PER_WORKER),
        title=f"verifying {index.name}",
        num_samples=index.num_samples,
    )
    faults = [fault for shard in shards for fault in shard.faults]
    faults += _shared_keys(checks, shards)
    return Report(
        folder=index.folder, shards=tuple(shards), num_samples=index.num_samples, faults=tuple(faults)
    )


def _shared_keys(checks: list[ShardCheck], shards: list[ShardReport]) -> list[Fault]:
    """Keys that stand in two shards; found by 64-bit digests, so that a billion of them fit in memory."""
    hashes: NDArray[np.uint64] = np.concatenate([shard.key_hashes for shard in shards])
    owners = np.repeat(np.arange(len(shards)), [len(shard.key_hashes) for shard in shards])
    places = np.concatenate([np.arange(len(shard.key_hashes)) for shard in shards])
    order = np.argsort(hashes, kind="stable")
    # In sorted order equal keys are neighbours; within one shard they are that shard's own fault.
    again = (hashes[order][1:] == hashes[order][:-1]) & (owners[order][1:] != owners[order][:-1])
    first, second = order[:-1][again], order[1:][again]
    names = _KeysByPlace(checks)
    return [
        Fault(
            shard=checks[owners[one]].shard.name,
            key=names.key(int(owners[one]), int(places[one])),
            problem=f"{checks[owners[other]].shard.name} has a sample of this key too (its sample {places[other]})",
            remedy="build these shards again with unique keys",
        )
        for one, other in zip(first.tolist(), second.tolist(), strict=True)
    ]


class _KeysByPlace:
    """Keys of single samples, read again: a report keeps only digests of them."""

    def __init__(self, checks: list[ShardCheck]) -> None:
        self._checks = checks
        self._last: tuple[int, list[str]] | None = None

    def key(self, number: int, place: int) -> str:
        """The key of the sample that stands at this place in a shard."""
        if self._last is None or self._last[0] != number:
            self._last = number, list_keys(self._checks[number])
        return self._last[1][place]
