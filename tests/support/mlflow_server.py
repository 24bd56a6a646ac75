"""A real `mlflow server` on a free loopback port, with SQLite in its own folder; it can hang, die and come back."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.ports import free_port

_START_S = 180.0


class MlflowServer:
    """Starts and ends the server; its address stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when the server answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **quiet, "OMP_NUM_THREADS": "1"},
                cwd=self._folder,
                start_new_session=True,
            )
        self._wait_until_healthy(self._process)

    def kill(self) -> None:
        """Ends the server and its workers at once, as a failing machine would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """From now on connections are taken, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends the hanging."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        log = (self._folder / "server.log").read_text(errors="replace")
        self.kill()
        raise RuntimeError(
            f"mlflow server on {self.uri} did not answer within {_START_S:g} s:\n{log[-2000:]}"
        )


@contextlib.contextmanager
def answering_500(port: int = 0) -> Iterator[tuple[int, Callable[[], int]]]:
    """A server that fails at every request; gives its port and what counts its answers."""
    num_answers = 0

    class Failing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal num_answers
            num_answers += 1
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, format: str, *values: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Failing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port, lambda: num_answers
        finally:
            server.shutdown()
            thread.join()
