"""Reads a run's event log from any place on, while it is written: whole lines, in pieces, without what was undone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG_NAME = "events.jsonl"
STATUS = {
    "run": "RUNNING",
    "resumed": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""What an event of this kind says about how the run stands."""

Event = dict[str, Any]

_PIECE_VALUES = 1000  # the most that MLflow takes in one request
_REWINDS = {"resumed": "step", "rolled_back": "to"}
"""Kinds of events after which later steps come again, and the field with the last step that stands."""


def read_from(path: Path, offset: int, *, containing: bytes = b"") -> Iterator[tuple[Event, int]]:
    """Events of the whole lines from `offset` on, each with the offset behind it; not torn ones."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            offset += len(line)
            event = _parse(line) if containing in line else None
            if event is not None:
                yield event, offset


def read_pieces(path: Path, offset: int) -> Iterator[tuple[list[Event], int]]:
    """The log from `offset` in pieces of at most 1,000 values, each with the offset behind it.

    Points of steps that a later line of the log takes back are left out: nobody has to see them who has not yet.
    """
    rewinds = [
        (place, step)
        for kind in _REWINDS
        for event, place in read_from(path, offset, containing=f'"{kind}"'.encode())
        if (step := rewound_to(event)) is not None
    ]
    events: list[Event] = []
    num_values = 0
    for event, end in read_from(path, offset):
        more = len(event.get("values", ()))
        if events and num_values + more > _PIECE_VALUES:
            yield events, offset
            events, num_values = [], 0
        if not _is_undone(event, [step for place, step in rewinds if place > end]):
            events.append(event)
            num_values += more
        offset = end
    if events:
        yield events, offset


def newest_run_event(run_dir: Path) -> Event | None:
    """The event that the newest start of the program wrote first."""
    newest = None
    if not (run_dir / LOG_NAME).is_file():
        return None
    for event, _ in read_from(run_dir / LOG_NAME, 0, containing=b'"run"'):
        newest = event if event["kind"] == "run" else newest
    return newest


def rewound_to(event: Event) -> int | None:
    """The last step that stands after a restart or a rollback; None for other events."""
    name = _REWINDS.get(event["kind"])
    step = None if name is None else event.get(name)
    return step if isinstance(step, int) else None


def points_of(event: Event) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of what was measured. Samples of the host are counted, since they belong to no step."""
    step = event.get("sample" if event["kind"] == "system" else "step")
    values = event.get("values")
    if isinstance(step, int) and isinstance(values, dict):
        for name, value in values.items():
            if isinstance(value, (int, float)):
                yield name, step, float(value)


def _is_undone(event: Event, rewinds: list[int]) -> bool:
    step = event.get("step")
    return "values" in event and isinstance(step, int) and any(step > last for last in rewinds)


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = (
        isinstance(event, dict)
        and isinstance(event.get("kind"), str)
        and isinstance(event.get("time"), (int, float))
    )
    return event if whole else None
