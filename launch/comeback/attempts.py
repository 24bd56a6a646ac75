"""Attempts: how each rank of a start of a job ended, a small file per rank in RUN/launch/attempts/JOB.RESTART/."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank ended; whoever is killed together with the process that watches it leaves no word."""

    rank: int
    num_ranks: int
    node: str
    """SLURM's name of it."""
    code: int
    """Exit code as a shell has it: 128 + N when signal N ended the rank."""
    last_line: str = ""
    """The last that it said on stderr."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


def record_end(folder: Path, end: RankEnd) -> None:
    """Writes down how this rank ended; `folder` is the attempt's, as everywhere here."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"rank_{end.rank}.json", asdict(end))


def count_ends(folder: Path) -> int:
    """How many ranks of this start have ended and said so."""
    return sum(1 for _ in folder.glob("rank_*.json"))


def read_ends(folder: Path) -> tuple[RankEnd, ...]:
    """All ends of this start that were written down, in rank order."""
    ends = [RankEnd(**json.loads(file.read_bytes())) for file in folder.glob("rank_*.json")]
    return tuple(sorted(ends, key=lambda end: end.rank))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a small file that appears whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(values) + "\n")
    aside.replace(path)
