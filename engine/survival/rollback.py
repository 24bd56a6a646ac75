"""Rollback: a run that is no longer finite goes back to its last checkpoint and leaves out what it was given then.

steps not finite in a row -> skipped_windows.jsonl (what to leave out) -> last checkpoint -> all other batches

The file is the truth: what it holds is left out by this process and by those that resume the run.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from engine.errors import DivergenceError
from engine.events import cut_torn_line
from engine.world import World

log = logging.getLogger(__name__)

NameSamples = Callable[[Tensor], Sequence[tuple[str, str]]]
"""Shard and key of each sample, int64 [B] of ids -> B pairs."""

_MOST_REMEMBERED = 1000
"""Batches whose sample ids are kept until it is known whether they were finite."""

_ADVICE = "lower optim.lr, lengthen schedule.warmup or set optim.clip_grad, and look at these images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Global batches that are left out: numbers `first` to `last` in the order of the run, from 0."""

    first: int
    last: int

    def __contains__(self, batch_index: int) -> bool:
        return self.first <= batch_index <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1


class Rollback:
    """When a run goes back, and the batches it then leaves out; made and used by all ranks together."""

    def __init__(
        self,
        path: Path,
        world: World,
        *,
        max_nonfinite: int,
        max_rollbacks: int,
        name_samples: NameSamples | None = None,
    ) -> None:
        self.path = path
        self._world = world
        self._max_nonfinite = max_nonfinite
        self._max_rollbacks = max_rollbacks
        self._name_samples = name_samples
        self._windows: list[Window] = world.broadcast(_read(path) if world.is_main else [])
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=_MOST_REMEMBERED)

    def trained_on(self, batch: Batch, batch_index: int) -> None:
        """Remembers what a step was given, in case it turns out not to have been finite."""
        self._recent.append((batch_index, batch.sample_ids.clone()))  # the batch's own memory is used again

    def is_due(self, num_nonfinite: int) -> bool:
        """Whether so many steps in a row, up to the newest, are too many; what finite steps were given is forgotten."""
        while len(self._recent) > num_nonfinite:
            self._recent.popleft()
        return num_nonfinite >= self._max_nonfinite

    def leaves_out(self, batch_index: int) -> bool:
        """Whether the run goes on without this global batch."""
        return any(batch_index in window for window in self._windows)

    def leave_out_recent(self, *, step: int) -> Window:
        """Writes down the batches of the newest steps, which were not finite; DivergenceError after too many times."""
        num_batches = len(self._recent)
        problem = f"loss or gradients were not finite for {num_batches} steps in a row, up to step {step}"
        if len(self._windows) >= self._max_rollbacks:
            raise DivergenceError(
                f"{problem}, after {len(self._windows)} rollbacks (train.max_rollbacks is {self._max_rollbacks}); "
                f"the weights are those of before. What was left out so far is in {self.path}; {_ADVICE}"
            )
        window = Window(first=self._recent[0][0], last=self._recent[-1][0])
        samples = self._gather_samples()
        if self._world.is_main:
            _append(self.path, {"step": step, "first": window.first, "last": window.last, "samples": samples})
        self._windows.append(window)
        self._recent.clear()
        return window

    def nothing_to_go_back_to(self, window: Window) -> DivergenceError:
        """The error of a run that has no checkpoint yet."""
        return DivergenceError(
            f"loss or gradients were not finite for {len(window)} steps in a row, before the first checkpoint. "
            f"Run the same command again: it begins anew without these images, which {self.path} lists. "
            f"If it comes back, {_ADVICE}"
        )

    def _gather_samples(self) -> list[dict[str, Any]]:
        """The samples of the recent batches over all ranks, batch by batch; each rank names its own."""
        named = iter(self._described(torch.cat([ids for _, ids in self._recent])))
        own = [[next(named) for _ in range(len(ids))] for _, ids in self._recent]
        parts = self._world.gather(own)
        return [entry for batch in zip(*parts, strict=True) for part in batch for entry in part]

    def _described(self, ids: Tensor) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"sample_id": sample_id} for sample_id in ids.tolist()]
        if self._name_samples is None:
            return entries
        try:
            names = self._name_samples(ids)
        except (OSError, DataError) as error:
            log.warning("the samples of %s are listed without their names: %s", self.path, error)
            return entries
        pairs = zip(entries, names, strict=True)
        return [{**entry, "shard": shard, "key": key} for entry, (shard, key) in pairs]


def _read(path: Path) -> list[Window]:
    cut_torn_line(path)
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return [Window(first=entry["first"], last=entry["last"]) for entry in entries]


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), **entry}) + "\n")
        file.flush()
        os.fsync(file.fileno())
