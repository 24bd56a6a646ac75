"""How commands word what they found: counted things, and tables for a terminal or a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def count(number: int, thing: str, plural: str | None = None) -> str:
    """``1 file``, ``2,000 files``, ``3 classes``."""
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"


def sizes(num_samples: int, num_classes: int, num_shards: int) -> str:
    """What a split amounts to."""
    classes = count(num_classes, "class", "classes") if num_classes else "no labels"
    return f"{count(num_samples, 'sample')}, {classes}, {count(num_shards, 'shard')}"


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Prints a table as wide as the terminal; whole numbers get thousands separators."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    # Without a terminal there is no width to fit into, and nothing may be cut.
    Console(width=None if sys.stdout.isatty() else 200).print(table, markup=False)
