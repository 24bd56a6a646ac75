"""The task every loader is given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH = 64
SIZE = 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMS = ("uint8", "float32")
"""A batch is uint8, channels first or last, or float32, normalized, channels first (in whatever memory order)."""
SUFFIXES = "jpg;png;webp"


def shards(corpus: Path) -> list[str]:
    """The tars of a corpus."""
    return sorted(map(str, corpus.glob("*.tar")))


def endlessly(loader: Iterable[Any]) -> Iterator[Any]:
    """Passes over a loader without end."""
    return itertools.chain.from_iterable(itertools.repeat(loader))
