"""An upload that the disk has no room for is refused in words, before half of it fills the disk; what is broken off leaves nothing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from qlora_ui.base.files import disk_full_in_words, free_bytes
from qlora_ui.base.units import MIB, format_bytes
from qlora_ui.ui.handler import toast_html

UPLOAD = "/gradio_api/upload"
COPIES = 2
"""Gradio's file, and the workspace's own (ui/new_data.py)."""
SPARE_BYTES = 16 * MIB
"""Stays free for what a run writes meanwhile."""
NO_ROOM = 507
PATH_WORDS = "A file on the computer that the app runs on need not be uploaded: give its path."


class Uploads:
    """ASGI middleware. Gradio itself writes until the disk is full, leaves what it has written, and answers "HTTP 500".

    Of an upload that its browser breaks off it leaves what came, too, and a traceback on the terminal.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._num_busy = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let uploads in that there is room for; everything else passes."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") != UPLOAD:
            await self._app(scope, receive, send)
            return
        folder = Path(scope["app"].uploaded_file_dir)
        needed, free = COPIES * _num_bytes(scope) + SPARE_BYTES, free_bytes(folder)
        if needed > free:
            # A browser that is still sending would not read the answer.
            while (await receive()).get("more_body"):
                pass
            refusal = _refusal(f"{format_bytes(free)} are free, {format_bytes(needed)} are needed. Free some space. {PATH_WORDS}")
            await refusal(scope, receive, send)
            return
        self._num_busy += 1
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return
        except OSError as error:
            # Others have filled the disk meanwhile.
            if disk_full_in_words(error) is None:
                raise
            await _refusal(f"Free some space, then do it again. {PATH_WORDS}")(scope, receive, send)
        finally:
            self._num_busy -= 1
            if not self._num_busy:
                _remove_parts(folder)


def _num_bytes(scope: Any) -> int:
    length = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
    return int(length) if length.isdigit() else 0


def _remove_parts(folder: Path) -> None:
    """Remove what no upload writes any more; Gradio puts whole files into folders of their own."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False):
                os.unlink(entry)


def _refusal(sentences: str) -> PlainTextResponse:
    return PlainTextResponse(toast_html("The disk has no room for this", f"<p>{sentences}</p>"), NO_ROOM)
