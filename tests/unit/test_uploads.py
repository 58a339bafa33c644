"""An upload to a disk that is nearly full: refused in words, and nothing written."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from qlora_ui.ui import uploads

MIB = 2**20


class Server:
    """What stands behind: it answers 200, or fails as a full disk does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.num_asked, self.left = error, 0, [True, True, False]
        self.sent: list[dict[str, Any]] = []
        self.folder: Path | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_asked += 1
        if self.folder:
            (self.folder / "uploads" / "tmpabc").write_text("half of it")
        if self.error:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def ask(self, folder: Path, num_bytes: int, method: str = "POST", path: str = "/gradio_api/upload") -> str:
        """Status and text of the answer."""
        headers = [(b"content-length", str(num_bytes).encode())]
        app = SimpleNamespace(uploaded_file_dir=str(folder / "uploads"))
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "app": app}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x", "more_body": self.left.pop(0)}

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        asyncio.run(uploads.Uploads(self)(scope, receive, send))
        return " ".join(str(message.get("status", message.get("body", b"").decode())) for message in self.sent)


@pytest.fixture(autouse=True)
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "free_bytes", lambda path: 100 * MIB)


def test_what_has_no_room_is_read_to_its_end_and_never_written(tmp_path: Path) -> None:
    server = Server()
    answer = server.ask(tmp_path, 50 * MIB)
    assert answer.startswith("507 ") and "100 MiB are free, 116 MiB are needed" in answer and "Free some space" in answer
    assert server.num_asked == 0 and server.left == []


def test_what_has_room_and_every_other_request_pass(tmp_path: Path) -> None:
    assert Server().ask(tmp_path, 40 * MIB) == "200"
    assert Server().ask(tmp_path, 50 * MIB, path="/gradio_api/run") == "200"
    assert Server().ask(tmp_path, 50 * MIB, method="GET") == "200"


def test_a_disk_that_fills_up_meanwhile_is_told_too(tmp_path: Path) -> None:
    assert "The disk has no room" in Server(OSError(errno.ENOSPC, "No space left on device")).ask(tmp_path, MIB)
    with pytest.raises(OSError, match="Denied"):
        Server(OSError(errno.EACCES, "Denied")).ask(tmp_path, MIB)


@pytest.mark.parametrize("error", [ClientDisconnect(), OSError(errno.ENOSPC, "No space left on device"), None])
def test_what_is_broken_off_leaves_nothing_and_whole_files_stay(tmp_path: Path, error: Exception | None) -> None:
    whole = tmp_path / "uploads" / "0123" / "rows.jsonl"
    whole.parent.mkdir(parents=True)
    whole.write_text("{}")
    server = Server(error)
    server.folder = tmp_path
    assert bool(server.ask(tmp_path, MIB)) is not isinstance(error, ClientDisconnect)
    assert [path.name for path in whole.parent.parent.iterdir()] == ["0123"] and whole.is_file()
