"""A short way through the server for what open pages ask each second: what is new, and the new points of the curves.

Gradio's own way to the same functions takes 2 to 3 ms of the interpreter a request, most of it for checks and conversions that these
two need not, and twice a change of threads. Each page asks each second, and the interpreter is shared with the training. So this
stands before all other middleware too, whose wrapping of each message takes longer than the answer. Whatever is unusual goes
Gradio's way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import orjson
from starlette.requests import Request

from qlora_ui.base.units import KIB
from qlora_ui.ui.blocks import Asked, Blocks
from qlora_ui.ui.guard import HEADERS, Guard

SERVER_FUNCTION = "/gradio_api/component_server"
"""Gradio's page asks with a slash at the end."""
NEWS = "news"
"""What a page's clock asks for (ui/pulse.py)."""
MOST_BYTES = 64 * KIB
"""Longer requests are none of these."""


class Shortcut:
    """ASGI middleware before all others: what `guard` would refuse it leaves to the guard's own place among them."""

    def __init__(self, app: Any, blocks: Blocks, guard: Guard) -> None:
        self._app = app
        self._blocks = blocks
        self._guard = guard

    @classmethod
    def lifespan(cls, blocks: Blocks, guard: Guard) -> Callable[[Any], AbstractAsyncContextManager[None]]:
        """Puts it before everything that a Starlette app has; Gradio adds middleware of its own last, which would come first.

        This is done before the first request: a page that has outlived the app asks at once when it is back.
        """

        @asynccontextmanager
        async def stand_before(app: Any) -> AsyncIterator[None]:
            app.middleware_stack = cls(app.middleware_stack or app.build_middleware_stack(), blocks, guard)
            yield

        return stand_before

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer if it is one of ours, else let Gradio see the very same request."""
        is_ours = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/") == SERVER_FUNCTION
        if not is_ours or not _is_short(scope) or not self._guard.lets_in(scope) or not _is_signed_in(scope):
            await self._app(scope, receive, send)
            return
        messages = await _whole_body(receive)
        answer = await self._answer(scope["app"], _parsed(messages))
        if answer is None:
            await self._app(scope, _again(messages, receive), send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode()), *HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, app: Any, asked: Any) -> bytes | None:
        """What a component's own script asks for; None where Gradio is to call the function."""
        if not isinstance(asked, dict):
            return None
        number, name, session = asked.get("component_id"), asked.get("fn_name"), asked.get("session_hash")
        if not (isinstance(number, int) and isinstance(name, str) and isinstance(session, str)):
            return None
        function = self._blocks.answers.get((number, name))
        if function is None and name == NEWS:
            # A page that has outlived an update of the app: nothing on it would find its place.
            return orjson.dumps({"reload": True})
        # Looking up the state also tells Gradio that the session is in use.
        return await function(Asked(session, app.state_holder[session], asked.get("data"))) if function is not None else None


def _is_short(scope: Any) -> bool:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return len(lengths) == 1 and lengths[0].isdigit() and int(lengths[0]) <= MOST_BYTES


def _is_signed_in(scope: Any) -> bool:
    """Whether Gradio would let the request in (`get_current_user` and `login_check` of gradio/routes.py)."""
    app = scope["app"]
    if app.auth_dependency is not None:
        return False
    if app.auth is None:
        return True
    cookies = Request(scope).cookies
    token = cookies.get(f"access-token-{app.cookie_id}") or cookies.get(f"access-token-unsecure-{app.cookie_id}")
    return app.tokens.get(token) is not None


async def _whole_body(receive: Any) -> list[Any]:
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _parsed(messages: list[Any]) -> Any:
    try:
        return orjson.loads(b"".join(message.get("body", b"") for message in messages))
    except orjson.JSONDecodeError:
        return None


def _again(messages: list[Any], receive: Any) -> Callable[[], Awaitable[Any]]:
    """What `receive` gave, then what it goes on to give."""
    left = iter(messages)

    async def receive_again() -> Any:
        message = next(left, None)
        return message if message is not None else await receive()

    return receive_again
