"""A Hub on this computer: the routes that a search, a look-up and a download use, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStub:
    """Repositories by name; `status` makes every answer a refusal, `cut_at` breaks a file off, `lie` garbles one."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.status = 0
        self.headers: dict[str, str] = {}
        self.cut_at: dict[str, int] = {}
        self.chunk_delay_s = 0.0
        self.ranges: list[str] = []
        self.wrong_sha = False
        self.release = threading.Event()

    def info(self, repo: str) -> dict[str, Any]:
        """A repository as the Hub's model route tells it."""
        siblings = []
        for name, content in self.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
            if name.endswith(".safetensors"):
                sha = "0" * 64 if self.wrong_sha else hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 100}
            siblings.append(entry)
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "gated": False, "tags": ["license:mit"], "downloads": 7}


def _handler(hub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if hub.status:
                self._send(hub.status, b"{}", hub.headers)
                return
            path = self.path.split("?")[0]
            if path == "/api/models":
                rows = [hub.info(repo) | {"config": json.loads(files.get("config.json", b"{}"))} for repo, files in hub.repos.items()]
                self._json(rows)
            elif "/resolve/" in path:
                repo, name = path[1:].split("/resolve/")
                self._file(repo, name.split("/", 1)[1])
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _api(self, rest: str) -> None:
            repo = "/".join(rest.split("/")[:2])
            tail = rest.split("/")[2:]
            if repo not in hub.repos:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif tail[:1] == ["revision"] and tail[1] not in ("main", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif tail[:1] == ["tree"]:
                rows = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in hub.repos[repo].items()]
                self._json(rows)
            else:
                self._json(hub.info(repo))

        def _file(self, repo: str, name: str) -> None:
            content = hub.repos.get(repo, {}).get(name)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            start = 0
            if asked := self.headers.get("Range"):
                hub.ranges.append(f"{name} {asked}")
                start = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            stop = hub.cut_at.get(name, len(content))
            try:
                self.wfile.write(content[start:stop])
                self.wfile.flush()
                if stop < len(content):
                    hub.release.wait(30)
                    self.close_connection = True
            except OSError:
                pass

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
def serve(hub: HubStub) -> Iterator[str]:
    """The address of a running stub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
