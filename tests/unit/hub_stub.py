"""A Hub on this computer: the routes that a search, a look-up and a download use, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import AbstractContextManager
from typing import Any

from tests.unit.stub_server import StubHandler, serving

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


def _handler(hub: HubStub) -> type[StubHandler]:
    class Handler(StubHandler):
        def do_GET(self) -> None:
            if hub.status:
                self.send(hub.status, b"{}", hub.headers)
                return
            path = self.path.split("?")[0]
            if path == "/api/models":
                rows = [hub.info(repo) | {"config": json.loads(files.get("config.json", b"{}"))} for repo, files in hub.repos.items()]
                self.send_json(rows)
            elif "/resolve/" in path:
                repo, rest = path[1:].split("/resolve/")
                name = rest.split("/", 1)[1]
                if asked := self.headers.get("Range"):
                    hub.ranges.append(f"{name} {asked}")
                self.send_file(hub.repos.get(repo, {}).get(name), COMMIT, stop_at=hub.cut_at.get(name), release=hub.release)
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            else:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def _api(self, rest: str) -> None:
            repo = "/".join(rest.split("/")[:2])
            tail = rest.split("/")[2:]
            if repo not in hub.repos:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif tail[:1] == ["revision"] and tail[1] not in ("main", COMMIT):
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif tail[:1] == ["tree"]:
                rows = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in hub.repos[repo].items()]
                self.send_json(rows)
            else:
                self.send_json(hub.info(repo))

    return Handler


def serve(hub: HubStub) -> AbstractContextManager[str]:
    """The address of a running stub."""
    return serving(_handler(hub), hub.release)
