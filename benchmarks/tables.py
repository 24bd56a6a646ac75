"""Rewrites the tables of README and docs from the committed result files, or with --check says which are stale.

python -m benchmarks.tables [--check]

A table stands between ``<!-- table: benchmarks/results/NAME.json -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Rewrites (or with ``--check`` compares) every page; returns 1 when a page was stale under ``--check``."""
    stale = []
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        fresh = _BLOCK.sub(lambda block: f"{block[1]}{render(ROOT / block[2])}{block[4]}", text)
        if fresh != text:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(fresh)
    if stale:
        sys.stdout.write(f"{'stale' if '--check' in arguments else 'rewritten'}: {', '.join(stale)}\n")
    return 1 if stale and "--check" in arguments else 0


def render(path: Path) -> str:
    """The Markdown table of one result file: {"columns": {key: [title, format]}, "rows": [...], "note": text}."""
    results = json.loads(path.read_text())
    columns: Mapping[str, Any] = results["columns"]
    lines = ["| " + " | ".join(title for title, _ in columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += [
        "| " + " | ".join(_cell(row.get(key), form) for key, (_, form) in columns.items()) + " |"
        for row in results["rows"]
    ]
    return "\n".join([*lines, "", results["note"], ""])


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
