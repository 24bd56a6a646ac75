"""The one form of a result file: what was measured, on which machine, with which versions; `tables.py` reads it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def write_result_file(
    out: Path | None,
    *,
    columns: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    note: str,
    versions: Mapping[str, str],
    machine: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Writes a result file, or prints it where `out` is None; `columns` is {key: [title, format]}."""
    results = {
        "columns": columns,
        "rows": rows,
        "note": note,
        "machine": describe_machine() if machine is None else machine,
        "versions": versions,
        **more,
    }
    text = json.dumps(results, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of distributions; those that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
