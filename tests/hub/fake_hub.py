"""A Hugging Face Hub on the loopback interface, as far as downloads need one, with all its ways to fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """repositories: name -> file name -> content. The rest are faults, by file name.

    breaks: how many downloads end after so many bytes, as (times, bytes). breaks_again: all later ones end at
    once. damaged: what is sent in place of the content. etags, sizes: what is told as checksum and as size.
    pause_after: bytes after which nothing more comes. token: needed to see anything. Large files are
    redirected to another server, as the hub does.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    breaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    breaks_again: bool = False
    damaged: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    pause_after: int | None = None
    token: str | None = None
    gated: bool = False
    port: int = 0
    cdn_port: int = 0
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(_Handler):
            fake = hub

        with _serving(Handler) as self.port, _serving(Handler) as self.cdn_port:
            yield self

    def downloads(self) -> list[dict[str, str]]:
        """The headers of the requests that asked for content."""
        return [headers for method, path, headers in self.requests if method == "GET" and "/api/" not in path]


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server that is running."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        with suppress(ConnectionError):  # the client may be gone
            self._serve()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.fake.requests.append(
            (self.command, path, {key.lower(): value for key, value in self.headers.items()})
        )
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._content(match[2], self.fake.repositories[match[1]][match[2]])
            return
        if self.fake.token is not None and self.headers.get("Authorization") != f"Bearer {self.fake.token}":
            self._error(401, "RepoNotFound")
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._error(404, "EntryNotFound")

    def _info(self, repository: str, revision: str | None) -> None:
        files = self.fake.repositories.get(repository)
        if files is None:
            self._error(404, "RepoNotFound")
        elif revision not in (None, "main", self.fake.commit):
            self._error(404, "RevisionNotFound")
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            body = {
                "id": repository,
                "modelId": repository,
                "sha": self.fake.commit,
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "private": False,
            }
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        files = self.fake.repositories.get(repository)
        if files is None:
            self._error(404, "RepoNotFound")
        elif self.fake.gated:
            self._error(403, "GatedRepo")
        elif revision not in ("main", self.fake.commit):
            self._error(404, "RevisionNotFound")
        elif name not in files:
            self._error(404, "EntryNotFound")
        else:
            content = files[name]
            headers = {
                "X-Repo-Commit": self.fake.commit,
                "ETag": f'"{self.fake.etags.get(name, git_sha1(content))}"',
            }
            if not name.endswith((".gguf", ".safetensors")):
                self._content(name, content, headers)
                return
            # As the hub does with large files: their hash, and where they are, on another host.
            headers["X-Linked-ETag"] = f'"{self.fake.etags.get(name, hashlib.sha256(content).hexdigest())}"'
            headers["X-Linked-Size"] = str(self.fake.sizes.get(name, len(content)))
            headers["Location"] = f"http://127.0.0.1:{self.fake.cdn_port}/cdn/{repository}/{name}"
            self._send(302, b"", headers)

    def _content(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        content = self.fake.damaged.get(name, content)
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        first, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.fake.ranges:
            first, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        times, n_bytes = self.fake.breaks.get(name, (0, 0))
        breaks = self.command == "GET" and times > 0
        if breaks:
            self.fake.breaks[name] = (1, 0) if self.fake.breaks_again else (times - 1, n_bytes)
        if not self.fake.breaks_again and n_bytes == 0:
            breaks = False
        body = content[first:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            body = body[:n_bytes] if breaks else body
            self.fake.sent[name] += len(body)
            pause = self.fake.pause_after
            self.wfile.write(body[:pause])
            while pause is not None and self.fake.pause_after is not None:
                time.sleep(0.02)
            self.wfile.write(body[pause:] if pause is not None else b"")
        if breaks:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
