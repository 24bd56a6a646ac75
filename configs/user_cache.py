"""What programs remember between runs in the user's cache: small JSON files, which may always be lost."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_remembered(kind: str, name: str) -> dict[str, Any]:
    """What was remembered under a name; empty where there is nothing, or the file is damaged."""
    try:
        found = json.loads(_path(kind, name).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(kind: str, name: str, content: Mapping[str, Any]) -> None:
    """Puts it in place of what was there, whole; where the cache cannot be written, nothing is remembered."""
    path = _path(kind, name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several hosts may share a home, where process numbers are not unique.
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        aside.write_text(json.dumps(content) + "\n")
        aside.replace(path)


def _path(kind: str, name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mirada" / kind / f"{name}.json"
