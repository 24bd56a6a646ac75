"""The log that everything else follows."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import events
from engine.events import EventLog, read_events


def test_an_event_is_one_line_that_can_be_read_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("metrics", step=3, values={"train/loss": 0.5})
    line = (tmp_path / "events.jsonl").read_text()
    assert line.count("\n") == 1
    assert json.loads(line) | {"time": 0} == {
        "time": 0,
        "kind": "metrics",
        "step": 3,
        "values": {"train/loss": 0.5},
    }


def test_what_json_cannot_write_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("metrics", values={"a": float("nan"), "b": float("inf"), "c": 1.0}, path=tmp_path)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["values"] == {"c": 1.0}
    assert event["path"] == str(tmp_path)


@pytest.mark.parametrize("torn", ["{", '{"kind": "metrics"', '{"kind": "metrics", "step": 2}'])
def test_the_line_a_kill_left_half_written_is_taken_back_and_the_log_goes_on(
    tmp_path: Path, torn: str
) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path)
    first.append("run")
    first.close()
    with path.open("a") as file:
        file.write(torn)
    assert [event["kind"] for event in read_events(path)] == ["run"]
    EventLog(path).append("resumed", step=1)
    assert [event["kind"] for event in read_events(path)] == ["run", "resumed"]


def test_on_a_full_disk_events_wait_and_are_written_in_order_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, filler = small_disk / "events.jsonl", small_disk / "filler"
    log = EventLog(path)
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(1 << 21))
    for step in range(300):
        log.append("metrics", step=step, note="x" * 100)
    log.flush()
    assert caplog.text.count(f"the disk of {path} is full") == 1
    assert len(list(read_events(path))) < 300
    filler.unlink()
    log.append("finished", step=300)
    assert [event["step"] for event in read_events(path)] == list(range(301))
    log.close()


def test_events_of_two_threads_are_written_once_each_however_slow_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_in_pieces(descriptor: int, content: bytes) -> int:
        time.sleep(0)  # another thread's turn
        return os.write(descriptor, content[:16])

    monkeypatch.setattr(events, "os", SimpleNamespace(**{**vars(os), "write": write_in_pieces}))
    log = EventLog(tmp_path / "events.jsonl")

    def append(kind: str) -> None:
        for number in range(100):
            log.append(kind, number=number)

    threads = [threading.Thread(target=append, args=(kind,)) for kind in ("metrics", "system")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = list(read_events(tmp_path / "events.jsonl"))
    for kind in ("metrics", "system"):
        assert [event["number"] for event in written if event["kind"] == kind] == list(range(100))


def test_a_log_without_a_path_keeps_nothing() -> None:
    log = EventLog(None)
    log.append("run")
    log.flush()
    log.close()
    assert list(read_events(Path("does-not-exist"))) == []
