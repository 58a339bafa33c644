"""Datasets of a Hub on this computer: the routes that a search, a listing, a preview and a download use."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from stub_server import StubHandler, serving

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
CONVERTED = "refs/convert/parquet"


class DatasetHub:
    """Repositories by name and revision; `status` makes every answer a refusal, `stop_at` holds up a download."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.converted: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.first_rows: list[dict[str, Any]] = []
        self.status = 0
        self.stop_at: int | None = None
        """After so many bytes of a file nothing more comes until `release`."""
        self.release = threading.Event()
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


def _handler(hub: DatasetHub) -> type[StubHandler]:
    class Handler(StubHandler):
        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            path = self.path.split("?")[0].replace("%2F", "/")
            if hub.status:
                self.send(hub.status, b"{}", {})
            elif path == "/first-rows":
                self.send_json({"rows": [{"row_idx": number, "row": row} for number, row in enumerate(hub.first_rows)]})
            elif path == "/api/datasets":
                self.send_json([hub.info(repo, files) for repo, files in hub.repos.items()])
            elif path.startswith("/api/datasets/"):
                rest = path.removeprefix("/api/datasets/")
                repo = "/".join(rest.split("/")[:2])
                files = hub.converted.get(repo) if CONVERTED in rest else hub.repos.get(repo)
                if files is None:
                    self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if repo in hub.repos else "RepoNotFound"})
                else:
                    self.send_json(hub.info(repo, files))
            elif path.startswith("/datasets/") and "/resolve/" in path:
                repo, rest = path.removeprefix("/datasets/").split("/resolve/")
                name = rest.split("/", 1)[1]
                content = {**hub.converted.get(repo, {}), **hub.repos.get(repo, {})}.get(name)
                # A preview, which asks for the start of a file, is never held up.
                held = None if self.headers.get("Range") else hub.stop_at
                self.send_file(content, COMMIT, stop_at=held, release=hub.release)
            else:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    return Handler


def serve(hub: DatasetHub) -> AbstractContextManager[str]:
    """The stub's address while it runs."""
    return serving(_handler(hub), hub.release)
