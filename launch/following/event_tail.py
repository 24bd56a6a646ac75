"""EventTail: how far a run is, from its event log; read on from where the last look ended."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

LOG_NAME = "events.jsonl"

_ENDS = {"finished": "finished", "failed": "failed", "stopped": "stopped"}
_WINDOW = 50
"""Points that the time left is told from: enough to hold an evaluation's pause, few enough to notice a new pace."""
_METRICS = b'"kind": "metrics"'
_SYSTEM = b'"kind": "system"'
_KIND_BYTES = 64  # every event begins with its time and its kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a run says of itself; `phase` is that of its newest start."""

    phase: str = "none"
    """none (nothing written yet), running, finished, failed or stopped."""
    why: str = ""
    """The error, or the signal that stopped it."""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    """As long as the pace of the last points lasts; None once it has ended."""
    saved_step: int | None = None
    num_starts: int = 0
    ranks: int | None = None
    host: str = ""
    """Rank 0's."""
    start_time: float | None = None
    """When the newest start was written down, in seconds since 1970, as all times here."""
    event_time: float | None = None
    """Of the newest event."""
    command: str = ""
    is_released: bool = False


class EventTail:
    """Follows one log; a log that was replaced by another (a fresh start) is read from its beginning."""

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / LOG_NAME
        self._restart()

    def read(self) -> Progress:
        """Takes in the whole lines written since the last call; a run without a log has made no progress."""
        try:
            with self._path.open("rb") as log:
                self._notice_replacement(os.fstat(log.fileno()))
                log.seek(self._offset)
                self._take_lines(log)
        except FileNotFoundError:
            self._restart()
        return self._with_pace()

    def _restart(self) -> None:
        self._offset = 0
        self._file: tuple[int, int] | None = None
        self._progress = Progress()
        self._points: deque[bytes] = deque(maxlen=_WINDOW)

    def _notice_replacement(self, status: os.stat_result) -> None:
        file = (status.st_dev, status.st_ino)
        if self._file not in (None, file) or status.st_size < self._offset:
            self._restart()
        self._file = file

    def _take_lines(self, log: IO[bytes]) -> None:
        for line in log:
            if not line.endswith(b"\n"):
                return  # still being written
            self._offset += len(line)
            self._take(line)

    def _take(self, line: bytes) -> None:
        """NOTE: of a long run nearly all lines are points, and only the last of those are ever parsed."""
        beginning = line[:_KIND_BYTES]
        if _METRICS in beginning:
            self._points.append(line)
        elif _SYSTEM not in beginning:
            self._take_event(json.loads(line))

    def _take_event(self, event: dict[str, Any]) -> None:
        kind, now = event["kind"], self._progress
        if kind in ("run", "resumed", "rolled_back"):
            self._points.clear()
        match kind:
            case "run":
                now = _started(now, event)
            case "resumed":
                now = replace(now, step=event["step"], saved_step=event["step"])
            case "rolled_back":
                now = replace(now, step=event["to"])
            case "checkpoint":
                now = replace(now, saved_step=event["step"])
            case "release":
                now = replace(now, is_released=True)
            case "finished" | "failed" | "stopped":
                why = str(event.get("error") or event.get("reason") or "")
                now = replace(now, phase=_ENDS[kind], why=why, step=event.get("step", now.step))
        self._progress = replace(now, event_time=event["time"])

    def _with_pace(self) -> Progress:
        """The progress with what the last points say."""
        if not self._points:
            return self._progress
        first, last = json.loads(self._points[0]), json.loads(self._points[-1])
        values, now = last["values"], self._progress
        now = replace(
            now,
            step=max(last["step"], now.step or 0),
            loss=values.get("train/loss"),
            images_per_s=values.get("perf/images_per_s"),
            event_time=max(last["time"], now.event_time or 0.0),
        )
        return replace(now, seconds_left=_seconds_left(now, _step_s(first, last)))


def _step_s(first: dict[str, Any], last: dict[str, Any]) -> float | None:
    """Seconds of a step between two points, evaluations and saves included; of a single point, its own."""
    num_steps = last["step"] - first["step"]
    if num_steps > 0:
        return float((last["time"] - first["time"]) / num_steps)
    own: float | None = last["values"].get("perf/step_s")
    return own


def _seconds_left(now: Progress, step_s: float | None) -> float | None:
    if now.phase != "running" or now.total_steps is None or now.step is None or step_s is None:
        return None
    return max(0, now.total_steps - now.step) * step_s


def _started(former: Progress, event: dict[str, Any]) -> Progress:
    return Progress(
        phase="running",
        step=former.step,
        saved_step=former.saved_step,
        total_steps=event.get("total_steps"),
        num_starts=former.num_starts + 1,
        ranks=event.get("world_size"),
        host=str(event.get("host", "")),
        start_time=event["time"],
        command=str(event.get("command", "")),
    )
