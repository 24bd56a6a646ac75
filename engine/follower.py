"""Follows a run's event log from where the last follower stopped, and hands what is new to a sink.

events.jsonl --Follower (how far: tracking.json)--> Sink, which may be slow, dead or gone for hours
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from configs.base import ConfigError

LOG_NAME = "events.jsonl"
STATE_NAME = "tracking.json"
LOCK_NAME = ".tracking.lock"
STATUS = {
    "run": "RUNNING",
    "resumed": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""What an event of this kind says about how the run stands."""

_PIECE_VALUES = 1000  # the most that MLflow takes in one request
_TAIL_BYTES = 65536
_POLL_S = 1.0
_MOST_BACKOFF_S = 10.0
_RELEASE_S = 600.0  # a large model's weights take minutes to collect and write

Event = dict[str, Any]

log = logging.getLogger(__name__)


class SinkError(Exception):
    """The sink did not take something; what arrived is not known."""


class Sink(Protocol):
    """Where events go: a tracking server, a file in another format."""

    place: str
    """Names server and run; another place gets everything from the start of the log."""

    def send(self, events: Sequence[Event]) -> None:
        """Takes a piece of the log; harmless if part of it, or all, arrived before."""

    def upload(self, path: Path, folder: str) -> None:
        """Takes a file of the run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far the log was sent, and where to."""

    place: str = ""
    offset: int = 0
    uploads: dict[str, list[int]] = field(default_factory=dict)
    """Size and time of change of each file that the sink has."""
    version: int = 1


class Follower:
    """Sends one run folder's log and the files that belong to it."""

    def __init__(self, run_dir: Path, connect: Callable[[Event], Sink]) -> None:
        self.run_dir = run_dir
        self._log = run_dir / LOG_NAME
        self._connect = connect
        self._sink: Sink | None = None
        self._start: Event | None = None
        self._state = _load_state(run_dir / STATE_NAME)
        if not self._log.is_file():
            raise ConfigError(f"{str(run_dir)!r} is not a run folder: it has no {LOG_NAME}")
        self._inode = self._log.stat().st_ino

    def send_all(self) -> int:
        """Sends all that is new and returns the number of events; SinkError when the sink did not take it."""
        sink = self._sink = self._sink or self._open_sink()
        if sink is None:
            return 0
        num_events = 0
        try:
            for events, offset in _pieces(self._log, self._state.offset):
                sink.send(events)
                if any(event["kind"] == "release" for event in events):
                    self._upload(sink, sorted((self.run_dir / "release").rglob("*")))
                self._save(replace(self._state, offset=offset))
                num_events += len(events)
            self._upload(sink, [self.run_dir / "config.yaml", self.run_dir / "report.html"])
        except SinkError:
            self._sink = None  # what arrived is not known: ask before sending more
            raise
        return num_events

    def mark_vanished(self) -> None:
        """Tells the sink that training went away without a last event."""
        if newest_run_event(self.run_dir) != self._start:
            return  # the run was started again meanwhile, and has a follower of its own
        if self._sink is not None and self.status() == "RUNNING":
            self._sink.send(
                [{"time": time.time(), "kind": "stopped", "reason": "the training process vanished"}]
            )

    def is_replaced(self) -> bool:
        """The log is another one than at the beginning: somebody moved the run folder and started afresh."""
        return not self._log.is_file() or self._log.stat().st_ino != self._inode

    def status(self) -> str:
        """How the run stands by its newest event that says so."""
        kinds = [kind for kind in self._newest_kinds() if kind in STATUS]
        return STATUS[kinds[-1]] if kinds else "RUNNING"

    def awaits_release(self) -> bool:
        """Training is finished, but its weights are not written yet."""
        return self.status() == "FINISHED" and "release" not in self._newest_kinds()

    def _newest_kinds(self) -> list[str]:
        tail_start = max(0, self._log.stat().st_size - _TAIL_BYTES)
        kinds = [event["kind"] for event, _ in read_from(self._log, tail_start)]
        starts = [index for index, kind in enumerate(kinds) if kind == "run"]
        return kinds[starts[-1] :] if starts else kinds

    def _open_sink(self) -> Sink | None:
        self._start = self._start or newest_run_event(self.run_dir)
        if self._start is None:
            return None
        sink = self._connect(self._start)
        if self._state.place != sink.place:
            # Another server, or the run was deleted there: all again; the sink knows what it has.
            self._state = State(place=sink.place)
        return sink

    def _upload(self, sink: Sink, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.is_file():
                continue
            name = path.relative_to(self.run_dir)
            change = [path.stat().st_size, path.stat().st_mtime_ns]
            if self._state.uploads.get(name.as_posix()) != change:
                sink.upload(path, name.parent.as_posix())
                self._save(replace(self._state, uploads={**self._state.uploads, name.as_posix(): change}))

    def _save(self, state: State) -> None:
        self._state = state
        aside = self.run_dir / f".{STATE_NAME}.{os.getpid()}"
        with aside.open("w") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.run_dir / STATE_NAME)


def follow(follower: Follower, *, parent: int | None, grace_s: float) -> bool:
    """Sends events as they appear until the run has ended; False if the sink is away `grace_s` later.

    With the process id of the training process that started this one, its end is the run's end too.
    """
    backoff_s = _POLL_S
    failed_since: float | None = None
    finished_at: float | None = None
    ended_at: float | None = None
    while True:
        # Asked before the log is read: whatever training wrote before it went away is sent in this pass.
        if follower.is_replaced():
            log.warning(
                "%s was moved away; send the rest with mirada sync from its new place", follower.run_dir
            )
            return False
        now = time.monotonic()
        vanished = parent is not None and os.getppid() != parent
        finished_at = (finished_at or now) if follower.awaits_release() else None
        patient = parent is not None and finished_at is not None and now - finished_at < _RELEASE_S
        ended = vanished or (follower.status() != "RUNNING" and not patient)
        ended_at = (ended_at or now) if ended else None
        try:
            follower.send_all()
            if vanished:
                follower.mark_vanished()
        except (SinkError, OSError) as failure:
            if failed_since is None:
                failed_since = now
                log.warning("%s; the log stays complete, trying again", failure)
            if ended_at is not None and now - ended_at >= grace_s:
                log.warning("gave up; send the rest with: mirada sync %s", follower.run_dir)
                return False
            backoff_s = min(2 * backoff_s, _MOST_BACKOFF_S)
        else:
            if failed_since is not None:
                log.info("back after %.0f s; everything is sent", now - failed_since)
            backoff_s, failed_since = _POLL_S, None
            if ended:
                return True
        time.sleep(backoff_s)


@contextlib.contextmanager
def held(lock: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file; False if another process does and `wait` is not given. The dead hold nothing."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _lock(handle, wait)
    finally:
        os.close(handle)


def newest_run_event(run_dir: Path) -> Event | None:
    """The event that the newest start of the program wrote first."""
    newest = None
    if not (run_dir / LOG_NAME).is_file():
        return None
    for event, _ in read_from(run_dir / LOG_NAME, 0, containing=b'"run"'):
        newest = event if event["kind"] == "run" else newest
    return newest


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


def _pieces(path: Path, offset: int) -> Iterator[tuple[list[Event], int]]:
    """The log from `offset` in pieces of at most 1,000 values, each with the offset behind it."""
    events: list[Event] = []
    num_values = 0
    for event, end in read_from(path, offset):
        more = len(event.get("values", ()))
        if events and num_values + more > _PIECE_VALUES:
            yield events, offset
            events, num_values = [], 0
        events.append(event)
        num_values += more
        offset = end
    if events:
        yield events, offset


def _load_state(path: Path) -> State:
    """What the last follower left; anything unreadable means starting over, which doubles nothing."""
    try:
        state = State(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return State()
    return state if state.version == State().version else State()


def _lock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        # NOTE: a file system without locks keeps nobody out. Two followers do double work, not harm.
        log.debug("no file locks here", exc_info=True)
    return True
