"""Datasets of a Hub on this computer: the routes that a search, a listing, a preview and a download use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
CONVERTED = "refs/convert/parquet"


class DatasetHub:
    """Repositories by name and revision; `status` makes every answer a refusal."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.converted: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.first_rows: list[dict[str, Any]] = []
        self.status = 0
        self.asked: list[str] = []

    def info(self, repo: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        return {
            "id": repo,
            "sha": COMMIT,
            "siblings": siblings,
            "gated": False,
            "private": False,
            "disabled": False,
            "downloads": 5,
            "likes": 0,
            "tags": ["license:mit"],
            "cardData": self.cards.get(repo, {}),
        }


def _handler(hub: DatasetHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            path = self.path.split("?")[0].replace("%2F", "/")
            if hub.status:
                self._send(hub.status, b"{}", {})
            elif path == "/first-rows":
                self._json({"rows": [{"row_idx": number, "row": row} for number, row in enumerate(hub.first_rows)]})
            elif path == "/api/datasets":
                self._json([hub.info(repo, files) for repo, files in hub.repos.items()])
            elif path.startswith("/api/datasets/"):
                rest = path.removeprefix("/api/datasets/")
                repo = "/".join(rest.split("/")[:2])
                files = hub.converted.get(repo) if CONVERTED in rest else hub.repos.get(repo)
                if files is None:
                    self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if repo in hub.repos else "RepoNotFound"})
                else:
                    self._json(hub.info(repo, files))
            elif path.startswith("/datasets/") and "/resolve/" in path:
                repo, rest = path.removeprefix("/datasets/").split("/resolve/")
                name = rest.split("/", 1)[1]
                self._file({**hub.converted.get(repo, {}), **hub.repos.get(repo, {})}.get(name))
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _file(self, content: bytes | None) -> None:
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                stop = min(int(last or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{stop}/{len(content)}"
                self._send(206, content[int(first) : stop + 1], headers)
            else:
                self._send(200, content, headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


@contextmanager
def serve(hub: DatasetHub) -> Iterator[str]:
    """The stub's address while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
