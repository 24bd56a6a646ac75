"""KeyReport: what became of every weight when a network was started from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_SHOWN = 4
"""Names of a kind that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """Every weight of the network is in one of the first five; `unexpected` are the checkpoint's own names."""

    reference: str
    """The checkpoint, as it was given."""
    loaded: tuple[str, ...] = ()
    """Taken as they are."""
    converted: tuple[str, ...] = ()
    """Taken from weights of other names, by timm's conversion for the architecture."""
    resized: Mapping[str, str] = field(default_factory=dict)
    """Resampled, or folded to other input channels: ``(1, 197, 192) -> (1, 50, 192)``."""
    reset: Mapping[str, str] = field(default_factory=dict)
    """Of the classifier, begun afresh, and why."""
    missing: tuple[str, ...] = ()
    """Not in the checkpoint: begun afresh."""
    unexpected: tuple[str, ...] = ()
    """Only in the checkpoint: left out."""

    @property
    def num_taken(self) -> int:
        """Weights that come from the checkpoint."""
        return len(self.loaded) + len(self.converted) + len(self.resized)

    def counts(self) -> dict[str, int]:
        """How many weights of each kind."""
        kinds = ("loaded", "converted", "resized", "reset", "missing", "unexpected")
        return {kind: len(getattr(self, kind)) for kind in kinds}

    def summary(self) -> str:
        """A line or two for people: how many of each kind, what was resized, and what happened to the head."""
        told = [f"{count} {kind}" for kind, count in self.counts().items() if count or kind == "loaded"]
        parts = [f"weights of {self.reference}: {', '.join(told)}"]
        if self.resized:
            parts.append(_shown("resized", [f"{name} {how}" for name, how in self.resized.items()]))
        if self.reset:
            reasons = ", ".join(dict.fromkeys(self.reset.values()))
            parts.append(f"head reset ({', '.join(self.reset)}): {reasons}")
        if self.missing:
            parts.append(_shown("missing", self.missing))
        if self.unexpected:
            parts.append(_shown("unexpected", self.unexpected))
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        return asdict(self)


def _shown(kind: str, names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind} {', '.join(names[:_SHOWN])}{more}"
