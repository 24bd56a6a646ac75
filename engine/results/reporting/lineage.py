"""What each run of a report was made from: data, code, and the releases it learned from with the run that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.results.run_record import RunRecord

_ROLES = {"start": "weights from"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A release that a run started from or learned from."""

    role: str
    reference: str
    maker: str
    """Name of the run that made it, where it is one of the report's; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """data + releases -> program, at a commit -> run"""

    run: RunRecord
    sources: Sequence[Source]
    code: str


def trace_lineage(runs: Sequence[RunRecord]) -> list[Line]:
    """A line for each run; releases are known by the id of the run that made them, so a moved folder is found too."""
    by_id = {run.start.get("run_id"): run.name for run in runs}
    by_place = {(run.path / "release").resolve(): run.name for run in runs}
    lines = []
    for run in runs:
        sources = [
            Source(
                role=_ROLES.get(role, role),
                reference=origin["path"],
                maker=by_id.get(origin.get("run_id", "")) or by_place.get(Path(origin["path"]).resolve(), ""),
            )
            for role, origin in run.start.get("origins", {}).items()
        ]
        lines.append(Line(run=run, sources=sources, code=_code(run)))
    return lines


def _code(run: RunRecord) -> str:
    commit = run.start.get("commit")
    if not commit:
        return ""
    return f"commit {str(commit)[:12]}{', changed since' if run.start.get('dirty') else ''}"
