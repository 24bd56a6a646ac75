"""Daemons of a test in one folder: found, started, waited for, and gone with all their children when it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_DAEMON_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_START_S = 180.0
_STOP_S = 15.0
_POLL_S = 0.1


class Daemons:
    """Processes that belong together: a variable of their environment marks them and all that they start."""

    def __init__(self, folder: Path, environment: Mapping[str, str], mark: str) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self._mark = f"{mark}={environment[mark]}".encode()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, program: str, *arguments: str, **variables: str) -> None:
        """Starts `program` in the foreground of a session of its own; what it prints goes to ``NAME.out``."""
        path = find_program_or_raise(program)
        with (self.folder / f"{name}.out").open("ab") as output:
            self._running[name] = subprocess.Popen(
                [path, *arguments],
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_running(self, name: str) -> bool:
        """Whether a daemon was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def kill(self, name: str) -> None:
        """SIGKILL to one daemon, and waits for its end."""
        daemon = self._running.pop(name)
        daemon.kill()
        daemon.wait()

    def stop_all(self) -> None:
        """Ends the daemons from the last to the first, then whatever else has their mark."""
        for daemon in reversed(list(self._running.values())):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._running.clear()
        end = time.monotonic() + _STOP_S
        while (left := [pid for pid, _ in self.processes()]) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

    def processes(self) -> Iterator[tuple[int, list[bytes]]]:
        """Id and environment of every process that has the mark: daemons, and what they started."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    if self._mark in environment:
                        yield int(entry.name), environment

    def wait_until(
        self,
        condition: Callable[[], bool],
        *,
        what: str,
        timeout_s: float = _START_S,
        poll_s: float = _POLL_S,
    ) -> None:
        """Returns as soon as `condition` holds; raises with the daemons' last words when it never does."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{what} did not come about in {timeout_s:.0f} s\n{_last_words(self.folder)}"
                )
            time.sleep(poll_s)


def find_program(name: str) -> str | None:
    """Where a program is installed; Debian's daemons are not on every PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), _DAEMON_PATH]))


def find_program_or_raise(name: str) -> str:
    """Where a program is installed; FileNotFoundError when it is not."""
    path = find_program(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


def _last_words(folder: Path) -> str:
    texts = []
    for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")]):
        lines = log.read_text(errors="replace").splitlines()[-5:]
        texts.append("\n  ".join([f"{log.name}:", *lines]))
    return "\n".join(texts)
