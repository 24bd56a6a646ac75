"""How far a run is, read from the log that it writes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.events import EventLog
from launch.following.event_tail import LOG_NAME, EventTail, Progress


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / LOG_NAME)


def start(log: EventLog, total_steps: int = 100) -> None:
    log.append("run", total_steps=total_steps, world_size=4, host="n1", command="mirada pretrain x.yaml")


def points(log: EventLog, first: int, last: int, *, step_s: float = 0.5) -> None:
    for step in range(first, last + 1):
        values = {"train/loss": 1 / step, "perf/images_per_s": 64 / step_s, "perf/step_s": step_s}
        log.append("metrics", step=step, images=step * 64, values=values)


def at_seconds(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, *, first: int, last: int, pace_s: float
) -> None:
    """Points that were written `pace_s` apart."""
    for step in range(first, last + 1):
        monkeypatch.setattr(time, "time", lambda step=step: 1000.0 + pace_s * step)
        points(log, step, step)


def test_a_run_without_a_log_has_made_no_progress(tmp_path: Path) -> None:
    assert EventTail(tmp_path).read() == Progress()


def test_step_loss_and_images_per_second_are_those_of_the_last_point(log: EventLog, tmp_path: Path) -> None:
    start(log)
    points(log, 1, 20)
    progress = EventTail(tmp_path).read()
    assert (progress.phase, progress.step, progress.total_steps) == ("running", 20, 100)
    assert progress.loss == 1 / 20
    assert progress.images_per_s == 128.0
    assert (progress.ranks, progress.host, progress.command) == (4, "n1", "mirada pretrain x.yaml")


def test_the_time_left_counts_the_pauses_between_points_too(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(log)
    at_seconds(log, monkeypatch, first=1, last=20, pace_s=3.0)
    assert EventTail(tmp_path).read().seconds_left == pytest.approx(80 * 3.0)


def test_the_time_left_forgets_the_pace_of_long_ago(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(log, total_steps=200)
    at_seconds(log, monkeypatch, first=1, last=60, pace_s=9.0)
    monkeypatch.undo()
    for step in range(61, 121):
        monkeypatch.setattr(time, "time", lambda step=step: 10_000.0 + 2.0 * step)
        points(log, step, step)
    assert EventTail(tmp_path).read().seconds_left == pytest.approx(80 * 2.0)


def test_after_a_single_point_the_time_left_comes_from_its_own_step_time(
    log: EventLog, tmp_path: Path
) -> None:
    start(log)
    points(log, 10, 10, step_s=0.25)
    assert EventTail(tmp_path).read().seconds_left == pytest.approx(90 * 0.25)


def test_a_log_without_total_steps_leaves_the_time_open(log: EventLog, tmp_path: Path) -> None:
    log.append("run", world_size=1, host="n1")
    points(log, 1, 3)
    progress = EventTail(tmp_path).read()
    assert (progress.step, progress.total_steps, progress.seconds_left) == (3, None, None)


def test_reading_on_sees_what_came_since_and_nothing_twice(log: EventLog, tmp_path: Path) -> None:
    tail = EventTail(tmp_path)
    start(log)
    points(log, 1, 5)
    assert tail.read().step == 5
    log.append("checkpoint", step=5, path="x")
    log.append("stopped", step=5, reason="SIGUSR2")
    stopped = tail.read()
    assert (stopped.phase, stopped.why, stopped.saved_step, stopped.num_starts) == (
        "stopped",
        "SIGUSR2",
        5,
        1,
    )
    assert stopped.seconds_left is None
    start(log)
    log.append("resumed", step=5)
    again = tail.read()
    assert (again.phase, again.why, again.step, again.saved_step, again.num_starts) == (
        "running",
        "",
        5,
        5,
        2,
    )
    assert tail.read() == again == EventTail(tmp_path).read()


def test_steps_that_a_restart_or_a_rollback_took_back_do_not_count(log: EventLog, tmp_path: Path) -> None:
    start(log)
    points(log, 1, 30)
    start(log)
    log.append("resumed", step=20)
    assert EventTail(tmp_path).read().step == 20
    points(log, 21, 40)
    log.append("rolled_back", **{"from": 40, "to": 20, "left_out": [38, 40]})
    assert EventTail(tmp_path).read().step == 20


def test_a_line_that_is_still_being_written_is_left_for_the_next_look(log: EventLog, tmp_path: Path) -> None:
    start(log)
    points(log, 1, 3)
    tail = EventTail(tmp_path)
    with (tmp_path / LOG_NAME).open("a") as half:
        half.write('{"time": 1.0, "kind": "finished"')
        half.flush()
        assert tail.read().phase == "running"
        half.write(', "step": 3}\n')
    assert tail.read().phase == "finished"


def test_a_fresh_log_in_the_place_of_a_moved_one_is_read_from_its_beginning(
    log: EventLog, tmp_path: Path
) -> None:
    start(log)
    points(log, 1, 90)
    tail = EventTail(tmp_path)
    tail.read()
    (tmp_path / LOG_NAME).rename(tmp_path / "old.jsonl")
    assert tail.read() == Progress()
    fresh = EventLog(tmp_path / LOG_NAME)
    start(fresh)
    points(fresh, 1, 2)
    assert (tail.read().step, tail.read().num_starts) == (2, 1)


def test_a_failure_keeps_its_reason(log: EventLog, tmp_path: Path) -> None:
    start(log)
    log.append("failed", error="RuntimeError: out of memory", step=7)
    progress = EventTail(tmp_path).read()
    assert (progress.phase, progress.why, progress.step) == ("failed", "RuntimeError: out of memory", 7)


def test_a_million_points_are_read_in_seconds_and_read_on_at_once(tmp_path: Path) -> None:
    line = b'{"time": 1.0, "kind": "metrics", "step": 7, "values": {"train/loss": 1.0, "perf/step_s": 1}}\n'
    (tmp_path / LOG_NAME).write_bytes(b'{"time": 1.0, "kind": "run", "total_steps": 9}\n' + line * 1_000_000)
    tail = EventTail(tmp_path)
    before = time.thread_time()
    assert tail.read().step == 7
    first_s = time.thread_time() - before
    again_s = []
    for _ in range(5):
        before = time.thread_time()
        tail.read()
        again_s.append(time.thread_time() - before)
    assert first_s < 5
    assert min(again_s) < first_s / 50
