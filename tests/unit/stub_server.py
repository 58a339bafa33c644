"""What the stubs of the Hub share: answers in JSON, files whole, in part or broken off, a server in a thread."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class StubHandler(BaseHTTPRequestHandler):
    """A handler whose subclass says in `do_GET` which of the methods below answers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """The routes."""
        raise NotImplementedError

    def send_json(self, value: object) -> None:
        """200 with a value."""
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """An answer of known length."""
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, content: bytes | None, commit: str, *, stop_at: int | None = None, release: threading.Event | None = None) -> None:
        """A file, or the part of it that was asked for; after `stop_at` bytes nothing comes until `release`, then the end."""
        if content is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        start, end = 0, len(content)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._head(206 if asked else 200, end - start, headers)
        if self.command == "HEAD":
            return
        stop = end if stop_at is None else min(stop_at, end)
        try:
            self.wfile.write(content[start:stop])
            self.wfile.flush()
            if stop < end and release is not None:
                release.wait(30)
                self.close_connection = True
        except OSError:
            pass

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def serving(handler: type[StubHandler], release: threading.Event) -> Iterator[str]:
    """The address of a server while it runs; at the end `release` is set, so that no answer is waited for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        release.set()
        server.shutdown()
        server.server_close()


def take_for_the_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the libraries of this process ask the server at `address` and keep what they download in `cache`."""
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
