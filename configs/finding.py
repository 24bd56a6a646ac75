"""Finding: what one check of a cluster says, in a line: all is well, something to know, or what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of a check."""

    check: str
    """What was looked at, in a word or three."""
    level: Level = "ok"
    said: str
    """What was seen."""
    advice: str = ""
    """What to do; empty where all is well."""

    def __str__(self) -> str:
        line = f"{self.level.upper() if self.level == 'fail' else self.level:<5} {self.check:<18} {self.said}"
        return f"{line}: {self.advice}" if self.advice else line


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Writes a file that appears whole."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    aside.replace(path)


def read_findings(path: Path) -> list[Finding]:
    """What `write_findings` wrote."""
    return [Finding(**values) for values in json.loads(path.read_bytes())]
