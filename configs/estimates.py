"""What `mirada plan` found out about a recipe, kept in the user's cache: the time limit is checked against it."""

from __future__ import annotations

from dataclasses import dataclass

from configs.user_cache import read_remembered, remember

_KIND = "plans"


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
    remember(_KIND, digest, {**_read(digest), str(estimate.num_ranks): estimate.hours})


def find_estimate(digest: str, num_ranks: int) -> Estimate | None:
    """The estimate for so many GPUs, else the one for the nearest number of them; None where no plan was made."""
    kept = {int(ranks): hours for ranks, hours in _read(digest).items()}
    if not kept:
        return None
    nearest = min(kept, key=lambda ranks: (abs(ranks - num_ranks), ranks))
    return Estimate(hours=kept[nearest], num_ranks=nearest)


def _read(digest: str) -> dict[str, float]:
    """Hours by the number of GPUs."""
    try:
        return {ranks: float(hours) for ranks, hours in read_remembered(_KIND, digest).items()}
    except (ValueError, TypeError):
        return {}
