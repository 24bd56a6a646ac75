"""What `mirada plan` found out about a recipe, kept in the user's cache: the time limit is checked against it."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a run takes."""

    hours: float
    num_ranks: int
    """GPUs that it was made for."""

    def hours_on(self, num_ranks: int) -> float:
        """The same work on another number of GPUs, if each does as much as before."""
        return self.hours * self.num_ranks / num_ranks


def keep_estimate(digest: str, estimate: Estimate) -> None:
    """Remembers it for the recipe with this digest; where the cache cannot be written, nothing is remembered."""
    path = _path(digest)
    kept = {**_read(path), str(estimate.num_ranks): estimate.hours}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        aside.write_text(json.dumps(kept) + "\n")
        aside.replace(path)


def find_estimate(digest: str, num_ranks: int) -> Estimate | None:
    """The estimate for so many GPUs, else the one for the nearest number of them; None where no plan was made."""
    kept = {int(ranks): hours for ranks, hours in _read(_path(digest)).items()}
    if not kept:
        return None
    nearest = min(kept, key=lambda ranks: (abs(ranks - num_ranks), ranks))
    return Estimate(hours=kept[nearest], num_ranks=nearest)


def _path(digest: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mirada" / "plans" / f"{digest}.json"


def _read(path: Path) -> dict[str, float]:
    """Hours by the number of GPUs."""
    try:
        return {str(ranks): float(hours) for ranks, hours in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}
