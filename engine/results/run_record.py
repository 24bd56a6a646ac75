"""RunRecord: a run folder read back: what was run, where, how it went, point by point."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.base import ConfigError
from engine.results.chart import Point
from engine.tracking.log_reader import LOG_NAME, STATUS, Event, points_of, read_from, rewound_to


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run, over all its starts."""

    path: Path
    name: str
    start: Mapping[str, Any]
    """The newest "run" event: command, config, machine, versions, digests."""
    series: Mapping[str, Sequence[Point]]
    """Values by name over steps; what a rollback undid is left out."""
    status: str
    happenings: Sequence[tuple[str, str]]
    """Starts, stops, failures ... each with its time of day."""
    num_steps: int
    num_images: int
    seconds: float
    """Time the program ran, without the pauses between its starts."""
    config_text: str

    @property
    def config(self) -> Mapping[str, Any]:
        """Flat: dotted key to value."""
        config: Mapping[str, Any] = self.start.get("config", {})
        return config

    @property
    def command(self) -> str:
        """As one would type it."""
        return command_line(self.start.get("command", ""))

    @property
    def facts(self) -> list[tuple[str, Any]]:
        """Folder, machine, code, data and versions by name."""
        told = [
            (key.replace("_", " "), value) for key, value in self.start.items() if key not in _TOLD_ELSEWHERE
        ]
        return [("folder", self.path), *told, *self.start.get("versions", {}).items()]

    @property
    def loss_parts(self) -> list[str]:
        """Names of the series that the loss is made of, if it has more than one part."""
        parts = [key for key in self.series if key.startswith("train/") and key not in _NO_LOSS_PARTS]
        return parts if len(parts) > 1 else []

    def last(self, key: str) -> float | None:
        """The newest value of a series."""
        points = self.series.get(key, ())
        return points[-1][1] if points else None

    def mean(self, key: str) -> float | None:
        """The mean of a series."""
        points = self.series.get(key, ())
        return sum(value for _, value in points) / len(points) if points else None


def read_run(path: Path) -> RunRecord:
    """Reads a run folder; ConfigError if it is none."""
    if not (path / LOG_NAME).is_file():
        raise ConfigError(f"{str(path)!r} is not a run folder: it has no {LOG_NAME}")
    events = [event for event, _ in read_from(path / LOG_NAME, 0)]
    starts = [event for event in events if event["kind"] == "run"]
    if not starts:
        raise ConfigError(f"{str(path / LOG_NAME)!r} holds no 'run' event: the run never started")
    config_file = path / "config.yaml"
    return RunRecord(
        path=path,
        name=str(starts[-1].get("name") or path.resolve().name),
        start=starts[-1],
        series=_series(events),
        status=next((STATUS[e["kind"]] for e in reversed(events) if e["kind"] in STATUS), "RUNNING").lower(),
        happenings=[
            (time.strftime("%H:%M:%S", time.localtime(e["time"])), text)
            for e in events
            if (text := _happening(e))
        ],
        num_steps=int(next((e["step"] for e in reversed(events) if "step" in e), 0)),
        num_images=int(next((e["images"] for e in reversed(events) if "images" in e), 0)),
        seconds=_seconds(events),
        config_text=config_file.read_text(errors="replace") if config_file.is_file() else "",
    )


def command_line(command: object) -> str:
    """A command as one line, however it was written down."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command)


_TOLD_ELSEWHERE = {"time", "kind", "config", "command", "versions", "name", "program"}
_NO_LOSS_PARTS = {"train/loss", "train/lr", "train/grad_norm", "train/skipped_steps"}


def _series(events: Sequence[Event]) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for event in events:
        last_step = rewound_to(event)
        if last_step is not None:
            series = {key: [p for p in points if p[0] <= last_step] for key, points in series.items()}
        if event["kind"] != "system":  # the host's samples are not over steps
            for key, step, value in points_of(event):
                series.setdefault(key, []).append((float(step), value))
    return series


def _happening(event: Event) -> str:
    step = f"step {event['step']:,}" if isinstance(event.get("step"), int) else ""
    match event["kind"]:
        case "run":
            return f"started on {event.get('world_size', 1)} rank(s)"
        case "resumed":
            return f"resumed after {step}"
        case "rolled_back":
            return f"rolled back from step {event.get('from'):,} to step {event.get('to'):,}"
        case "stopped":
            return f"stopped after {step}: {event.get('reason', '')}"
        case "failed":
            return f"failed: {event.get('error', '')}"
        case "finished":
            return f"finished after {step}"
        case "release":
            return f"released {event.get('path', '')}"
    return ""


def _seconds(events: Sequence[Event]) -> float:
    total = 0.0
    for before, after in pairwise(events):
        if after["kind"] != "run":
            total += max(0.0, after["time"] - before["time"])
    return total
