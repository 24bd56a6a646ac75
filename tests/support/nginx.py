"""NginxServer: a real nginx on a loopback port; it serves a folder, and can refuse, hang up, be slow, be killed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_START_S = 60.0
_POLL_S = 0.02

# Faults are files whose presence nginx looks for at each request, so that a test switches them without a restart.
_CONF = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    default_type application/octet-stream;
    types {{ text/html html; }}
    log_format told '$status $request_method $request_uri $http_range $bytes_sent';
    access_log {folder}/access.log told;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        autoindex on;
        if (-f {folder}/unavailable) {{ return 503; }}
        if (-f {folder}/hanging-up) {{ return 444; }}
        if (-f {folder}/slow) {{ set $limit_rate 400k; }}
        location /whole/ {{ alias {root}/; max_ranges 0; }}
        location /private/ {{ return 403; }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of the access log; it is written when the answer ended."""

    status: int
    method: str
    path: str
    range: str
    bytes_sent: int


class NginxServer:
    """Serves `root`; its address stays the same over restarts."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when the server listens."""
        self._folder.mkdir(parents=True, exist_ok=True)
        conf = self._folder / "nginx.conf"
        conf.write_text(_CONF.format(folder=self._folder, root=self._root, port=self._port))
        command = [_find(), "-p", str(self._folder), "-c", str(conf), "-e", str(self._folder / "error.log")]
        with (self._folder / "out.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not _listens(self._port):
            if time.monotonic() > deadline or self._process.poll() is not None:
                logs = "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))
                self.kill()
                raise RuntimeError(f"nginx did not come up on {self.url}:\n{logs[-2000:]}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """Ends the server and every connection to it at once, as a pulled plug would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def fault(self, kind: str) -> Iterator[None]:
        """Answers while this lasts are 503 ("unavailable"), none at all ("hanging-up") or slow ("slow")."""
        mark = self._folder / kind
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def requests(self, path: str = "") -> list[Request]:
        """What was asked for and has ended, of one path or of all."""
        log = self._folder / "access.log"
        text = log.read_text() if log.exists() else ""
        lines = text.rpartition("\n")[0].splitlines()  # the last may be on its way
        parsed = (line.split(" ") for line in lines)
        asked = [
            Request(status=int(status), method=method, path=uri, range=asked_range, bytes_sent=int(sent))
            for status, method, uri, asked_range, sent in parsed
        ]
        return [request for request in asked if path in ("", request.path)]


def missing_for_nginx() -> str | None:
    """Why no nginx can be brought up here, or None."""
    return None if _find() else "nginx is not installed: apt-get install nginx-light"


@contextlib.contextmanager
def nginx_server(folder: Path, root: Path) -> Iterator[NginxServer]:
    """A running server of the files below `root`; its configuration and logs are in `folder`."""
    server = NginxServer(folder, root)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Returns as soon as the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the awaited state did not come about in {timeout_s:g} s")
        time.sleep(_POLL_S)


def _find() -> str:
    return shutil.which("nginx") or shutil.which("nginx", path=_SBIN) or ""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
