"""The event log as followers read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.events import EventLog
from engine.tracking.log_reader import Event, newest_run_event, points_of, read_pieces


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def train(log: EventLog, *steps: int, **values: float) -> None:
    for step in steps:
        log.append("metrics", step=step, values=values or {"train/loss": 1.0})


def steps_sent(path: Path, offset: int = 0) -> list[int]:
    return [
        step for events, _ in read_pieces(path, offset) for event in events for _, step, _ in points_of(event)
    ]


def test_a_line_that_is_still_being_written_waits(path: Path) -> None:
    train(EventLog(path), 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert steps_sent(path) == [1]
    path.write_bytes(whole)
    assert steps_sent(path) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "fields"), [("resumed", {"step": 4}), ("rolled_back", {"from": 6, "to": 4})]
)
def test_points_that_a_later_line_takes_back_are_left_out(
    path: Path, kind: str, fields: dict[str, Any]
) -> None:
    log = EventLog(path)
    train(log, 1, 4, 5, 6)
    log.append(kind, **fields)
    train(log, 5, 6)
    assert steps_sent(path) == [1, 4, 5, 6]


def test_a_rewind_behind_another_takes_back_what_came_between(path: Path) -> None:
    log = EventLog(path)
    train(log, 1, 2, 3)
    log.append("rolled_back", **{"from": 3, "to": 2})
    train(log, 3, 4)
    log.append("resumed", step=1)
    train(log, 2, 3)
    assert steps_sent(path) == [1, 2, 3]


def test_samples_of_the_host_are_no_steps_and_are_never_taken_back(path: Path) -> None:
    log = EventLog(path)
    log.append("system", sample=7, values={"system/cpu_utilization_percentage": 50.0})
    log.append("resumed", step=0)
    assert steps_sent(path) == [7]


@pytest.mark.parametrize("num_values", [999, 1000, 1001])
def test_pieces_hold_at_most_a_thousand_values_and_end_where_the_next_begins(
    path: Path, num_values: int
) -> None:
    log = EventLog(path)
    train(log, 1, **{f"train/part_{i}": 1.0 for i in range(num_values)})
    train(log, 2)
    pieces = list(read_pieces(path, 0))
    assert len(pieces) == (1 if num_values < 1000 else 2)
    assert pieces[-1][1] == path.stat().st_size
    assert steps_sent(path, pieces[0][1]) == ([] if num_values < 1000 else [2])


def test_the_newest_start_of_the_program_is_found(path: Path) -> None:
    log = EventLog(path)
    for host in ("node-1", "node-2"):
        log.append("run", run_id="x", host=host)
        train(log, 1)
    newest: Event | None = newest_run_event(path.parent)
    assert newest is not None and newest["host"] == "node-2"
    assert newest_run_event(path.parent / "nowhere") is None
