"""A fake of the Hugging Face hub's HTTP API on loopback: takes a repository, files big and small, and a commit.

Written after the requests that huggingface_hub makes; big files go by the git-lfs protocol (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """What was asked of it."""

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `create` said, by OWNER/NAME."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the last commit, by path."""
    messages: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded big files by sha256."""
    cards: list[str] = field(default_factory=list)
    """Whose front matter was validated."""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """The API, POST by POST."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, asked)
            return (409 if known else 200), {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = [
                {**entry, "actions": {"upload": {"href": f"{self.url}/upload/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": wanted}
        if path.endswith("/commit/main"):
            return 200, self._commit([json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"no such address: {path}"}

    def store(self, path: str, body: bytes) -> int:
        """A big file: its name is its checksum."""
        oid = path.rsplit("/", 1)[1]
        if hashlib.sha256(body).hexdigest() != oid:
            return 400
        self.objects[oid] = body
        return 200

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        self.files = {}
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    self.messages.append(value["summary"])
                case "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
        oid = hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()
        return {"commitUrl": f"{self.url}/someone/net/commit/{oid}", "commitOid": oid, "hookOutput": ""}


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves while the block runs; every request but uploads has to bring TOKEN."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._reply(401, {"error": "Invalid username or password."})
                return
            self._reply(*hub.answer(self.path.split("?")[0], body))

        def do_PUT(self) -> None:
            self._reply(hub.store(self.path, self._body()), {})

        def _body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            parts = []
            while size := int(self.rfile.readline(), 16):  # chunked
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _reply(self, code: int, content: Any) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *values: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
