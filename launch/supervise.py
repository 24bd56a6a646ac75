"""Child processes that live and end together: signals reach all of them, one failure ends all, none is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPED = os.EX_TEMPFAIL
"""Exit code of a program that a signal stopped after it saved: the same command goes on."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a program that Ctrl-C stopped."""

_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    output: IO[bytes] | None = None
    """Open file that gets what it prints; without one it prints where we do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a group of processes ended."""

    code: int
    """0, or the exit code of the first that failed (128 + N when signal N ended it)."""
    first_failure: int | None
    """Index of the command that failed first."""
    codes: Sequence[int]
    """Exit code of each command."""
    interrupted: bool
    """Ctrl-C was pressed."""
    signals: Sequence[int] = ()
    """Signals that reached us and were passed on."""


def run_together(
    commands: Sequence[Command], *, grace_s: float = 15.0, received: list[int] | None = None
) -> Outcome:
    """Runs the commands side by side until all have ended; when one fails, the others get `grace_s` seconds to stop.

    `received` are signals that came before and are passed on too; whoever collects them may do so until this begins.
    """
    received = [] if received is None else received
    children: list[subprocess.Popen[bytes]] = []
    with _receiving(received):
        try:
            for command in commands:
                children.append(_start(command))
            return _watch(children, received, grace_s)
        finally:
            _end_groups(children)


def _start(command: Command) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own: a Ctrl-C of the terminal reaches us, and we pass it on once."""
    return subprocess.Popen(
        list(command.arguments),
        env=dict(command.environment),
        stdin=subprocess.DEVNULL,
        stdout=command.output,
        stderr=subprocess.STDOUT if command.output else None,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
    )


def _die_with(parent: int) -> Callable[[], None]:
    """Asks the kernel to kill the child when we are gone, however we went."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # we died between fork and prctl
            os._exit(128 + signal.SIGKILL)

    return prepare


@contextlib.contextmanager
def _receiving(received: list[int]) -> Iterator[None]:
    """Collects signals in `received`; one that is ignored (nohup) stays ignored."""

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    wanted = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[subprocess.Popen[bytes]], received: list[int], grace_s: float) -> Outcome:
    running, codes = dict(enumerate(children)), [0] * len(children)
    code, first_failure = 0, None
    forwarded: list[int] = []
    kill_at = float("inf")
    while running:
        while received:
            forwarded.append(received.pop(0))
            _send(running.values(), forwarded[-1])
            if forwarded.count(signal.SIGINT) > 1:  # the first asks to save and stop, the second to stop
                kill_at = min(kill_at, time.monotonic() + grace_s)
        for index, child in [(index, child) for index, child in running.items() if _has_ended(child)]:
            del running[index]
            returned = codes[index] = _reap(child)
            if returned == 0 or first_failure is not None:
                continue
            code, first_failure = returned, index
            # A rank that was asked to stop and did is no failure: the others are doing the same.
            if returned not in (STOPPED, INTERRUPTED):
                _send(running.values(), signal.SIGTERM)
                kill_at = min(kill_at, time.monotonic() + grace_s)
        if time.monotonic() > kill_at:
            _send(running.values(), signal.SIGKILL)
        time.sleep(_POLL_S if running else 0)
    return Outcome(
        code=code,
        first_failure=first_failure,
        codes=codes,
        interrupted=signal.SIGINT in forwarded,
        signals=forwarded,
    )


def _send(children: Iterable[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        os.kill(child.pid, number)  # not child.send_signal(), which reaps


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Looks without reaping: until then the process id, and so its group's, cannot belong to anybody else."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reap(child: subprocess.Popen[bytes]) -> int:
    """Ends what a finished process left in its group, and returns its exit code as a shell would."""
    _kill_group(child.pid)
    returned = child.wait()
    return returned if returned >= 0 else 128 - returned


def _end_groups(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.returncode is None:
            _kill_group(child.pid)
            child.wait()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
