"""Who may talk to the app: Host, Origin and Sec-Fetch are checked on every route, before Gradio sees the request.

A page of a stranger in the same browser can reach 127.0.0.1 too, by a forged form, or by a name that it lets resolve to
127.0.0.1. Neither can forge the headers checked here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.responses import PlainTextResponse

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware. `hosts` are the names under which the app is reached; any port of them is right, since the browser
    cannot reach another port's app through ours."""

    def __init__(self, app: Any, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer refused requests, pass the others on with the security headers added to the response."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self.refusal(scope.get("method", "GET"), scope.get("scheme", "http"), _headers(scope))
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, sentence = refusal
            await PlainTextResponse(sentence, status)(scope, receive, _with_headers(send))

    def lets_in(self, scope: Any) -> bool:
        """Whether the request may pass."""
        return self.refusal(scope["method"], scope["scheme"], _headers(scope)) is None

    def refusal(self, method: str, scheme: str, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused; None for one that may pass."""
        hosts = headers.get("host", [])
        if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:
            return 421, "This app is not reached under that name."
        origins = headers.get("origin", [])
        if origins:
            own = f"{'https' if scheme in ('https', 'wss') else 'http'}://{hosts[0].lower()}"
            is_foreign = len(origins) != 1 or origins[0].lower() != own
        else:
            sites = headers.get("sec-fetch-site", [])
            is_foreign = method not in SAFE_METHODS and any(site in ("cross-site", "same-site") for site in sites)
        return (403, "Another page may not use this app.") if is_foreign else None


def _headers(scope: Any) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return headers


def _name(host: str) -> str:
    """The host without its port; brackets of an IPv6 address stay off."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.partition(":")
    return name if not colon or port.isdigit() else ""


def _with_headers(send: Any) -> Any:
    async def send_guarded(message: Any) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in HEADERS}
            kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in ours]
            message = {**message, "headers": [*kept, *HEADERS]}
        await send(message)

    return send_guarded
