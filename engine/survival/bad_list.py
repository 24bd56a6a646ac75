"""BadList: the images a run could not use, each once, whichever ranks met it and however often the run was started."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from data_pipeline.bad import BadSample, refuse_too_many
from data_pipeline.errors import DataError
from engine.events import cut_torn_line
from engine.world import World


class BadSource(Protocol):
    """A loader that knows which images it could not use."""

    @property
    def num_samples(self) -> int: ...

    def drain_bad(self) -> Sequence[BadSample]: ...


class BadList:
    """What one loader of every rank met, in a file with one JSON object per image.

    Several lists, with other `data`, may share the file. Rank 0 has the path; without one nothing is kept.
    """

    def __init__(
        self, path: Path | None, source: BadSource, *, max_fraction: float, data: str = "train"
    ) -> None:
        self.path = path
        self._source = source
        self._max_fraction = max_fraction
        self._data = data
        self._known = {} if path is None else _read(path, data)

    def __len__(self) -> int:
        return len(self._known)

    def agree(self, world: World) -> list[BadSample]:
        """All ranks together: lists what any of them met since the last time, and returns what is new (on rank 0).

        Above the allowed fraction of all images, every rank raises the same DataError, with the table of reasons.
        """
        met = self._source.drain_bad()
        if not world.max(len(met)):
            return []
        found = self.add(sample for part in world.gather(met) for sample in part)
        verdict = world.broadcast(self._verdict())
        if verdict is not None:
            raise DataError(verdict)
        return found

    def add(self, samples: Iterable[BadSample]) -> list[BadSample]:
        """Writes down the images that are not in the list yet, and returns them."""
        fresh = {s.sample_id: s for s in samples if s.sample_id not in self._known}
        if self.path is None or not fresh:
            return []
        with self.path.open("a") as file:
            file.writelines(
                json.dumps({"data": self._data, **asdict(sample)}) + "\n" for sample in fresh.values()
            )
        self._known |= fresh
        return list(fresh.values())

    def _verdict(self) -> str | None:
        """What is wrong if there are too many; only the rank that keeps the list can tell."""
        try:
            refuse_too_many(
                self._known.values(), num_samples=self._source.num_samples, max_fraction=self._max_fraction
            )
        except DataError as error:
            return str(error)
        return None


def _read(path: Path, data: str) -> dict[int, BadSample]:
    cut_torn_line(path)
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return {
        entry["sample_id"]: BadSample(**{name: entry[name] for name in BadSample.__slots__})
        for entry in entries
        if entry.get("data", "train") == data
    }
