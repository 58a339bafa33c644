"""What a client of OpenAI's chat API asks for, read and checked; everything wrong becomes words with HTTP's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.data.rows import Message
from qlora_ui.settings.sampling import Sampling

DEFAULT_TOKENS = 1024
_CODES = {"context-full": "context_length_exceeded"}
"""Errors that clients know by a code of OpenAI's, and act on."""
_NOT_THEIR_FAULT = {"internal": 500, "closing": 503, "chat-not-loaded": 503}


class BadRequest(QloraUiError):
    """A request that cannot be answered; `status` is HTTP's."""

    code = "invalid_request_error"

    def __init__(self, what: str, status: int = 400, code: str | None = None) -> None:
        self.status = status
        super().__init__(what, code=code)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for an answer, checked."""

    side: str
    messages: tuple[Message, ...]
    sampling: Sampling
    stops: tuple[str, ...]
    is_streamed: bool
    wants_usage: bool


def status_of(error: QloraUiError) -> int:
    """HTTP's number for an error; clients ask again after those from 500 on."""
    return error.status if isinstance(error, BadRequest) else _NOT_THEIR_FAULT.get(error.code, 400)


def error_body(error: QloraUiError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": _CODES.get(error.code, error.code)}}


def read_request(body: Mapping[str, Any], sides: Sequence[str], name: str) -> ChatRequest:
    """A checked request; the model is a side (`base`, `adapter`), or the loaded run's name for its adapter. Raises BadRequest."""
    side = side_named(body.get("model"), sides, name)
    _refuse_what_is_not_done(body)
    raw = body.get("messages")
    if not isinstance(raw, list) or not raw:
        raise BadRequest("There are no messages.")
    stop = body.get("stop")
    stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(text, str) and text for text in stops):
        raise BadRequest("“stop” must be a text or a list of texts.")
    most = next((key for key in ("max_completion_tokens", "max_tokens") if body.get(key) is not None), "max_tokens")
    if not isinstance(body.get("stream"), bool | None):
        raise BadRequest("“stream” must be true or false.")
    options = body.get("stream_options") or {}
    sampling = Sampling(_number(body, "temperature", 1.0), _number(body, "top_p", 1.0), _whole(body, most, DEFAULT_TOKENS), _seed(body))
    usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
    return ChatRequest(side, tuple(_message(item) for item in raw), sampling, tuple(stops), body.get("stream") is True, usage)


def side_named(model: Any, sides: Sequence[str], name: str) -> str:
    """The side that a client means; the last one where it names none. Raises BadRequest."""
    if not sides:
        raise BadRequest("No model is loaded.", 503, "not_loaded")
    side = sides[-1] if model in (None, "", name) else model
    if side not in sides:
        raise BadRequest(f"There is no model “{str(model)[:80]}” here, only {', '.join(sides)}.", 404, "model_not_found")
    return str(side)


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    """Raise BadRequest for what would change the answer and is not done here: left out silently, it would be missed."""
    if body.get("n") not in (None, 1):
        raise BadRequest("Only one answer at a time (n = 1).")
    form = body.get("response_format")
    undone = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty")
    asked = [key for key in undone if body.get(key)]
    if isinstance(form, dict) and form.get("type") not in (None, "text"):
        asked.append("response_format")
    if asked:
        raise BadRequest(f"“{asked[0]}” is not done here: leave it out.", 400, "unsupported_parameter")


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise BadRequest("A message must be an object with role and content.")
    role, content = item.get("role"), item.get("content")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant", "tool"):
        raise BadRequest("The role of a message must be system, user, assistant or tool.")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
            raise BadRequest("Only text can be sent, no pictures or sound.")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest("The content of a message must be text.")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise BadRequest("The content of a message holds half a letter (a lone surrogate).") from None
    return Message(role, content)


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"“{name}” must be a number.")
    if not abs(value) < 1e9:
        raise BadRequest(f"“{name}” is out of all bounds.")
    return float(value)


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = _number(body, name, default)
    if value != int(value):
        raise BadRequest(f"“{name}” must be a whole number.")
    return int(value)


def _seed(body: Mapping[str, Any]) -> int | None:
    value = body.get("seed")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadRequest("“seed” must be a whole number.")
    return value % 2**63 if isinstance(value, int) else None
