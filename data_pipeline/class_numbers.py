"""Names of classes that are known by their numbers alone."""

from __future__ import annotations

from data_pipeline.errors import DataError

_MOST = 1_000_000
"""Beyond this a number is something else: an id, a year, a price."""


def numbered_classes(highest: int, *, where: str) -> tuple[str, ...]:
    """A name for each class from 0 on; DataError for a number that is none, which `where` leads to."""
    if highest >= _MOST:
        raise DataError(f"{where}: label {highest} is above {_MOST - 1}; is it a class?")
    return tuple(map(str, range(highest + 1)))
