"""S3Server: moto's S3 in a process of its own on a free loopback port; it can be killed and come back (empty)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec

from tests.support.ports import free_port

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_START_S = 180.0


class S3Server:
    """The server at `url`; a process reaches it with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def start(self) -> None:
        """Returns when the server listens."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        with (self._folder / "s3.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **CREDENTIALS},
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._listens():
            if time.monotonic() > deadline or self._process.poll() is not None:
                log = (self._folder / "s3.log").read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"moto's S3 server did not come up on {self.url}:\n{log[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends the server; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def missing_for_s3() -> str | None:
    """Why no S3 server can be brought up here, or None."""
    absent = [name for name in ("moto", "s3fs", "flask") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)} (pip install 'mirada[test,s3]')" if absent else None


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A running server that holds nothing."""
    server = S3Server(folder)
    server.start()
    try:
        # fsspec keeps connections by their options, which do not tell one endpoint of the environment from another.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield server
    finally:
        server.kill()
