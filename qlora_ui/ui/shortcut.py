"""A short way through the server for what open pages ask each second: what is new, and the new points of the curves.

Gradio's own way to the same functions takes 2 to 3 ms of the interpreter a request, most of it for checks and conversions that these
two need not, and twice a change of threads. Each page asks twice a second, and the interpreter is shared with the training. What is
answered here is what Gradio would answer (a test compares them); whatever is unusual goes Gradio's way.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request

from qlora_ui.ui.blocks import Blocks, is_skip

POLL = "/gradio_api/run/predict"
SERVER_FUNCTION = "/gradio_api/component_server"
MOST_BYTES = 64 * 1024
"""Longer requests are none of these."""


class Shortcut:
    """ASGI middleware before Gradio's routes and behind the guard."""

    def __init__(self, app: Any, blocks: Blocks) -> None:
        self._app = app
        self._blocks = blocks
        self._ways: Mapping[str, Callable[[Any, Any], Awaitable[bytes | None]]] = {POLL: self._poll, SERVER_FUNCTION: self._server_function}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer if it is one of ours, else let Gradio see the very same request."""
        way = self._ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if way is None or not _is_short(scope) or not _is_signed_in(scope):
            await self._app(scope, receive, send)
            return
        messages = await _whole_body(receive)
        answer = await way(scope["app"], _parsed(messages))
        if answer is None:
            await self._app(scope, _again(messages, receive), send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _poll(self, app: Any, asked: Any) -> bytes | None:
        """What is new for a page; None for any other event."""
        if not isinstance(asked, dict):
            return None
        number, session, data = asked.get("fn_index"), asked.get("session_hash"), asked.get("data")
        poll = self._blocks.polls.get(number) if isinstance(number, int) else None
        if poll is None or not isinstance(session, str) or not isinstance(data, list):
            return None
        block_fn = self._blocks.fns[number]
        if len(data) != len(block_fn.inputs):
            return None
        began = time.monotonic()
        # Also tells Gradio that the session is in use.
        state = app.state_holder[session]
        values = [state[block._id] if block.stateful else value for block, value in zip(block_fn.inputs, data, strict=True)]
        answer = await poll(session, values)
        if any(_changes_more_than_a_value(value) for value in answer):
            answer = await self._blocks.postprocess_data(block_fn, answer, state)
        took = time.monotonic() - began
        return orjson.dumps(
            {
                "data": answer,
                "is_generating": False,
                "duration": took,
                "average_duration": took,
                "render_config": None,
                "changed_state_ids": [],
                "used_cache": None,
            }
        )

    async def _server_function(self, app: Any, asked: Any) -> bytes | None:
        """What a component's own script asks for; None where Gradio is to call the function."""
        if not isinstance(asked, dict):
            return None
        number, name = asked.get("component_id"), asked.get("fn_name")
        function = self._blocks.answers.get((number, name)) if isinstance(number, int) and isinstance(name, str) else None
        return function(asked.get("data")) if function is not None else None


def _changes_more_than_a_value(value: Any) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update" and not is_skip(value)


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
