"""The classes of an evaluated network for a report: the hardest first, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.results.class_scores import NO_CLASS

_MOST_CLASSES = 60
_MOST_PAIRS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """Of one network."""

    name: str
    classes: Sequence[Mapping[str, Any]]
    num_classes: int
    """Of which `classes` are the hardest."""
    mistakes: Sequence[tuple[str, str, int]]
    """True class, what it was taken for, how often: the most frequent first."""


def class_tables(rows: Sequence[Mapping[str, Any]]) -> list[ClassTable]:
    """One for each row that was measured class by class."""
    return [_table(row) for row in rows if row.get("classes")]


def _table(row: Mapping[str, Any]) -> ClassTable:
    classes = row["classes"]
    hardest = sorted(classes, key=lambda one: (one["recall"] is None, one["recall"] or 0.0))
    wrong = sorted(
        (pair for pair in row.get("confusions", ()) if pair[0] != pair[1]), key=lambda pair: -pair[2]
    )
    return ClassTable(
        name=str(row.get("name", "")),
        classes=hardest[:_MOST_CLASSES],
        num_classes=len(classes),
        mistakes=[
            (classes[true]["name"], "no class" if taken == NO_CLASS else classes[taken]["name"], count)
            for true, taken, count in wrong[:_MOST_PAIRS]
        ],
    )
