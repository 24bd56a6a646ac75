"""A real HTTP server on loopback: serves a folder with byte ranges and listings, counts what it was asked for."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RangeServer(http.server.ThreadingHTTPServer):
    """Counts requests for content and the bytes sent for them."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.num_requests = 0
        self.num_bytes = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """The folder's address, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(folder: Path) -> Iterator[RangeServer]:
    """Serves a folder until the block ends."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and content are two writes: else the second waits for an answer
    server: RangeServer

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(args[2].folder))

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        stop = min(int(asked[2]) + 1 if asked and asked[2] else len(content), len(content))
        if asked and start >= len(content):
            self.send_error(416)
            return
        with self.server.lock:  # before it is sent: who has the answer finds it counted
            self.server.num_requests += 1
            self.server.num_bytes += stop - start
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""
