"""Follows a run's event log from where the last follower stopped, and hands what is new to a sink.

events.jsonl --Follower (how far: tracking.json)--> Sink, which may be slow, dead or gone for hours
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from configs.base import ConfigError
from engine.tracking.log_reader import LOG_NAME, STATUS, Event, newest_run_event, read_from, read_pieces

STATE_NAME = "tracking.json"
LOCK_NAME = ".tracking.lock"
TRAINING_LOCK_NAME = ".lock"
"""Held by rank 0 as long as it lives (engine/run_folder.py)."""

_TAIL_BYTES = 65536
_POLL_S = 1.0
_MOST_BACKOFF_S = 10.0
_RELEASE_S = 600.0  # a large model's weights take minutes to collect and write
_SILENT_S = 600.0
"""A log that grew within this time belongs to a living run, whatever another host's view of its lock is."""

log = logging.getLogger(__name__)


class SinkError(Exception):
    """The sink did not take something; what arrived is not known."""


class Sink(Protocol):
    """Where events go: a tracking server, files in another format."""

    place: str
    """Names server and run; another place gets everything from the start of the log."""

    def send(self, events: Sequence[Event]) -> None:
        """Takes a piece of the log; harmless if part of it, or all, arrived before."""

    def upload(self, path: Path, folder: str) -> None:
        """Takes a file of the run folder."""

    def publish(self, release: Event) -> None:
        """The files of a release were all uploaded; harmless when said twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far the log was sent, and where to."""

    place: str = ""
    offset: int = 0
    uploads: dict[str, list[int]] = field(default_factory=dict)
    """Size and time of change of each file that the sink has."""
    release: Event | None = None
    """The newest release that is not published yet."""
    version: int = 1


class Follower:
    """Sends one run folder's log and the files that belong to it to one sink."""

    def __init__(
        self, run_dir: Path, connect: Callable[[Event], Sink], *, state_name: str = STATE_NAME
    ) -> None:
        self.run_dir = run_dir
        self._log = run_dir / LOG_NAME
        self._connect = connect
        self._sink: Sink | None = None
        self._start: Event | None = None
        self._state_path = run_dir / state_name
        self._state = _load_state(self._state_path)
        if not self._log.is_file():
            raise ConfigError(f"{str(run_dir)!r} is not a run folder: it has no {LOG_NAME}")
        self._inode = self._log.stat().st_ino

    def send_all(self) -> int:
        """Sends all that is new and returns the number of events; SinkError when the sink did not take it."""
        with self._turn():
            return self._send_new()

    def _send_new(self) -> int:
        sink = self._sink = self._sink or self._open_sink()
        if sink is None:
            return 0
        num_events = 0
        try:
            for events, offset in read_pieces(self._log, self._state.offset):
                sink.send(events)
                releases = [event for event in events if event["kind"] == "release"]
                release = releases[-1] if releases else self._state.release
                self._save(replace(self._state, offset=offset, release=release))
                num_events += len(events)
            self._upload(sink, [self.run_dir / "config.yaml", self.run_dir / "report.html"])
            self._publish(sink)
        except SinkError:
            self._sink = None  # what arrived is not known: ask before sending more
            raise
        return num_events

    def is_complete(self) -> bool:
        """The run is finished, its weights are written, and nothing that the log says by now is left to be sent."""
        ended = self.status() == "FINISHED" and not self.awaits_release()
        return ended and next(read_from(self._log, self._state.offset), None) is None

    def mark_vanished(self) -> None:
        """Tells the sink that training went away without a last event."""
        if newest_run_event(self.run_dir) != self._start:
            return  # the run was started again meanwhile, and has a follower of its own
        if self._sink is not None and self.status() == "RUNNING":
            self._sink.send(
                [{"time": time.time(), "kind": "stopped", "reason": "the training process vanished"}]
            )

    def is_abandoned(self) -> bool:
        """Nobody trains in the folder, although its log does not end; False where that cannot be told."""
        if (
            self.status() != "RUNNING"
            or self._start is None
            or not _is_free(self.run_dir / TRAINING_LOCK_NAME)
        ):
            return False
        silent_s = time.time() - self._log.stat().st_mtime
        return self._start.get("host") == socket.gethostname() or silent_s > _SILENT_S

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

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Lets followers of the same log take turns, such as one on the node that trains and has no network, and one
        on the login node: each goes on where the other came, and asks the sink what it has by now."""
        with held(self._state_path.with_name(f".{self._state_path.name}.lock"), wait=True):
            state = _load_state(self._state_path)
            if state != self._state and (self._sink is None or self._sink.place == state.place):
                self._state, self._sink = state, None
            yield

    def _publish(self, sink: Sink) -> None:
        """After the points, so that a registry or a large file that fails holds nothing else up."""
        release = self._state.release
        if release is not None:
            self._upload(sink, sorted((self.run_dir / "release").rglob("*")))
            sink.publish(release)
            self._save(replace(self._state, release=None))

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
        aside = self._state_path.with_name(f".{self._state_path.name}.{os.getpid()}")
        with aside.open("w") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._state_path)


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


_FLOCK = "hhqqi"
"""struct flock of Linux: type, whence, start, length (0: to the end), process."""


def _is_free(lock: Path) -> bool:
    """Whether no process holds the record lock; asked without taking it, so that nobody who wants it is refused."""
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with lock.open("r+b") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, wanted)
    except OSError:
        return False  # no lock file, or a file system without locks: it cannot be told
    return bool(struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK)
