"""The tracking server, asked from every node; a run does not need it, but somebody has to send its events."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from configs.finding import Finding
from engine.doctor.staff import Staff

_TIMEOUT_S = 5.0
_SQLITE = "sqlite:///"


def check_tracking(staff: Staff, uri: str) -> Finding:
    """A server answers; a database lies in a folder that the nodes have."""
    problems = staff.ask(lambda: _problem(uri) if staff.is_leader else "")
    if not any(problems):
        return Finding(check="tracking", said=f"{uri} answers on every node")
    node, problem = next((n, p) for n, p in zip(staff.nodes, problems, strict=True) if p)
    return Finding(
        check="tracking",
        level="note",
        said=f"{node} does not reach {uri} ({problem})",
        advice="runs are complete without it; send their events from the login node: mirada sync --watch RUN",
    )


def _problem(uri: str) -> str:
    if uri.startswith(_SQLITE):
        folder = Path(uri.removeprefix(_SQLITE)).parent
        return "" if folder.is_dir() else f"there is no folder {str(folder)!r}"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}"
    except (OSError, ValueError) as error:  # URLError is an OSError
        return str(getattr(error, "reason", error))
