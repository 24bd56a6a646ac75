"""BadList: the images a run could not use, each once, whichever ranks met it and however often the run was started."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from data_pipeline.bad import BadSample


class BadList:
    """A file with one JSON object per image; without a path (ranks other than 0) nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._known = {int(json.loads(line)["sample_id"]) for line in lines}

    def add(self, samples: Iterable[BadSample]) -> list[BadSample]:
        """Writes down the images that are not in the list yet, and returns them."""
        fresh = {s.sample_id: s for s in samples if s.sample_id not in self._known}
        if self.path is None or not fresh:
            return []
        with self.path.open("a") as file:
            file.writelines(json.dumps(asdict(sample)) + "\n" for sample in fresh.values())
        self._known |= fresh.keys()
        return list(fresh.values())
