"""Scripts of ours that must run before Gradio's: its own `head` comes when all of Gradio is loaded."""

from __future__ import annotations

from typing import Any

from qlora_ui.ui.theme import STATIC

PLACE = b"<head>"


class Early:
    """ASGI middleware that puts static/early/*.js at the beginning of each page."""

    def __init__(self, app: Any) -> None:
        self._app = app
        scripts = [path.read_text(encoding="utf-8") for path in sorted((STATIC / "early").glob("*.js"))]
        self._head = PLACE + "".join(f"<script>{script}</script>" for script in scripts).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on as it is but what is HTML."""
        is_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        await self._app(scope, receive, self._with_scripts(send) if is_page else send)

    def _with_scripts(self, send: Any) -> Any:
        begun: list[Any] = []
        pieces: list[bytes] = []

        async def send_later(message: Any) -> None:
            """Gradio gives the page in one piece with its length, which is known anew once the last piece is here."""
            if message["type"] == "http.response.start":
                begun.append(message)
                return
            pieces.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = b"".join(pieces).replace(PLACE, self._head, 1)
            others = [(name, value) for name, value in begun[0]["headers"] if name.lower() != b"content-length"]
            await send({**begun[0], "headers": [*others, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})

        return send_later
