"""What a report may show beside the runs: files that other commands wrote."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.base import ConfigError
from engine.results.run_record import command_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Files that a report may show beside the runs."""

    evaluation: Path | None = None
    """What `mirada evaluate --json` wrote: {"data", "num_images", "rows": [{"name", "top1", ...}], "pictures"}."""
    attention: Path | None = None
    """PNG or JPEG."""
    commands: Path | None = None
    """[{"name", "command", "seconds"}, ...] in order; seconds may be left out."""
    samples: bool = False
    """Whether to draw images of each run's data, as it varied them: the data has to be there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image inside the page."""

    title: str
    source: str
    """A data URL."""


def read_evaluation(path: Path | None) -> dict[str, Any]:
    """Empty where there is none."""
    return dict(_read_json(path, dict) or {})


def read_pictures(evaluation: Mapping[str, Any], path: Path | None) -> list[Picture]:
    """Those that an evaluation drew, which lie where it says, seen from its own folder."""
    folder = Path() if path is None else path.parent
    return [
        Picture(title=str(picture["title"]), source=inline_image(folder / picture["file"]))
        for picture in evaluation.get("pictures", ())
    ]


def read_commands(path: Path | None) -> list[dict[str, Any]]:
    """Each command as one line."""
    steps = _read_json(path, list) or []
    return [{**step, "command": command_line(step.get("command", ""))} for step in steps]


def inline_image(path: Path) -> str:
    """The picture as a data URL; ConfigError where it is neither PNG nor JPEG."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise ConfigError(f"cannot read the picture {str(path)!r}: {failure}") from failure
    kind = next((name for magic, name in kinds.items() if content.startswith(magic)), None)
    if kind is None:
        raise ConfigError(f"{str(path)!r} is neither PNG nor JPEG")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _read_json(path: Path | None, kind: type) -> Any:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as failure:
        raise ConfigError(f"cannot read {str(path)!r} as JSON: {failure}") from failure
    if not isinstance(content, kind):
        raise ConfigError(f"{str(path)!r} holds a {type(content).__name__}, not a {kind.__name__}")
    return content
