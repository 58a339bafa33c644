"""The loaded model under OpenAI's chat API on this computer, so that any program that speaks it can try the adapter.

Only 127.0.0.1 listens. A page in the browser could send requests there too: Host and Origin are checked, and a body must say
that it is JSON, which no page of another site may do unasked.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.data.rows import Message
from qlora_ui.engine.chat import ChatService, Sampling

MAX_BODY_BYTES = 4 * 1024 * 1024
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_REASONS = {"end": "stop", "length": "length", "context": "length", "stop": "stop"}


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


class ChatServer:
    """Serves a ChatService until `stop`; one answer at a time, others wait."""

    def __init__(self, service: ChatService, port: int = 0, key: str = "") -> None:
        """`port` 0 takes a free one; with `key` every request must bring it as a bearer token. Raises QloraUiError where the
        port is taken."""
        self.service = service
        self.key = key
        self.turn = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        try:
            self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            raise QloraUiError(
                f"Port {port} cannot be used.", why=error.strerror or str(error), fix="Give another one, or 0 for any.", code="port"
            ) from None
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, name="chat-server", daemon=True)

    @property
    def url(self) -> str:
        """What a client is given as its base URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def start(self) -> str:
        """Begin to listen; returns the base URL."""
        self._thread.start()
        return self.url

    def stop(self) -> None:
        """Stop listening and end the answer that is being given."""
        self.service.stop()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def models(self) -> dict[str, Any]:
        """The sides of what is loaded, as OpenAI lists models."""
        loaded = self.service.loaded()
        owners = [{"id": side, "object": "model", "owned_by": loaded.name} for side in loaded.sides] if loaded else []
        return {"object": "list", "data": owners}


class _Handler(BaseHTTPRequestHandler):
    owner: ChatServer
    protocol_version = "HTTP/1.1"
    server_version = "qlora-ui"
    sys_version = ""

    def do_GET(self) -> None:
        self._guarded(lambda: self._json(200, self.owner.models()) if self._path() == "/v1/models" else self._unknown())

    def do_POST(self) -> None:
        self._guarded(lambda: self._chat() if self._path() == "/v1/chat/completions" else self._unknown())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: conversations and their addresses are nobody's business."""

    def _guarded(self, work: Any) -> None:
        try:
            self._check_sender()
            work()
        except BadRequest as error:
            self._error(error.status, error)
        except QloraUiError as error:
            self._error(400, error)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _check_sender(self) -> None:
        host = (self.headers.get("Host") or "").rsplit(":", maxsplit=1)[0]
        origin = self.headers.get("Origin")
        if host not in _HOSTS:
            raise BadRequest("This host name is not served.", 421, "host")
        if origin is not None and origin.split("://", maxsplit=1)[-1].rsplit(":", maxsplit=1)[0] not in _HOSTS:
            raise BadRequest("Pages of other sites are not served.", 403, "origin")
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.owner.key and not hmac.compare_digest(given.encode(), self.owner.key.encode()):
            raise BadRequest("The key is missing or wrong.", 401, "invalid_api_key")

    def _path(self) -> str:
        return self.path.split("?", maxsplit=1)[0].rstrip("/")

    def _unknown(self) -> None:
        raise BadRequest("There are only /v1/models and /v1/chat/completions.", 404, "not_found")

    def _body(self) -> dict[str, Any]:
        if (self.headers.get("Content-Type") or "").split(";")[0].strip().lower() != "application/json":
            raise BadRequest("The body must be application/json.", 415)
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise BadRequest("The length of the body is missing.", 411)
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise BadRequest("The body is larger than 4 MiB.", 413)
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise BadRequest("The body is no JSON.") from None
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.")
        return body

    def _chat(self) -> None:
        loaded = self.owner.service.loaded()
        request = read_request(self._body(), loaded.sides if loaded else (), loaded.name if loaded else "")
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": request.side}
        with self.owner.turn:
            pieces = _pieces(self.owner.service, request)
            if request.is_streamed:
                self._stream(head, pieces, request)
            else:
                self._whole(head, pieces, request)

    def _whole(self, head: Mapping[str, Any], pieces: Iterator[_Piece], request: ChatRequest) -> None:
        text, last = "", _Piece("")
        for last in pieces:
            text += last.text
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": last.finish_reason}
        usage = self._usage(request, last.num_tokens)
        self._json(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def _stream(self, head: Mapping[str, Any], pieces: Iterator[_Piece], request: ChatRequest) -> None:
        first = next(pieces, None)
        # Errors of the first piece (a conversation that is too long) still get a status of their own.
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()

        def send(delta: dict[str, str], reason: str | None = None) -> None:
            self._event({**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        send({"role": "assistant", "content": ""})
        last = first
        while last is not None:
            if last.text:
                send({"content": last.text})
            if last.finish_reason is not None:
                send({}, last.finish_reason)
                if request.wants_usage:
                    usage = self._usage(request, last.num_tokens)
                    self._event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
            last = next(pieces, None)
        self.wfile.write(b"data: [DONE]\n\n")

    def _usage(self, request: ChatRequest, num_tokens: int) -> dict[str, int]:
        prompt = self.owner.service.count_tokens(request.messages)[0]
        return {"prompt_tokens": prompt, "completion_tokens": num_tokens, "total_tokens": prompt + num_tokens}

    def _event(self, value: Mapping[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, error: QloraUiError) -> None:
        # A body that was not read would be taken for the next request.
        self.close_connection = True
        self._json(status, {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}})


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text to send on; the last one has a reason."""

    text: str
    finish_reason: str | None = None
    num_tokens: int = 0


def read_request(body: Mapping[str, Any], sides: Sequence[str], name: str) -> ChatRequest:
    """A checked request; the model is a side (`base`, `adapter`), or the loaded run's name for its adapter. Raises BadRequest."""
    if not sides:
        raise BadRequest("No model is loaded.", 503, "not_loaded")
    model = body.get("model") or sides[-1]
    side = sides[-1] if model == name else model
    if side not in sides:
        raise BadRequest(f"There is no model “{str(model)[:80]}” here, only {', '.join(sides)}.", 404, "model_not_found")
    if body.get("n") not in (None, 1):
        raise BadRequest("Only one answer at a time (n = 1).")
    raw = body.get("messages")
    if not isinstance(raw, list) or not raw:
        raise BadRequest("There are no messages.")
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else ()
    if not all(isinstance(text, str) and text for text in stops):
        raise BadRequest("“stop” must be a text or a list of texts.")
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 1024
    options = body.get("stream_options") or {}
    sampling = Sampling(
        _number(body, "temperature", 1.0), _number(body, "top_p", 1.0), int(_number({"max_tokens": most}, "max_tokens", 1024)), _seed(body)
    )
    usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
    return ChatRequest(side, tuple(_message(item) for item in raw), sampling, stops, body.get("stream") is True, usage)


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
    return Message(role, content)


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"“{name}” must be a number.")
    return float(value)


def _seed(body: Mapping[str, Any]) -> int | None:
    value = body.get("seed")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadRequest("“seed” must be a whole number.")
    return value % 2**63 if isinstance(value, int) else None


def _pieces(service: ChatService, request: ChatRequest) -> Iterator[_Piece]:
    """The answer's text, up to the first stop text; what could be the beginning of one is held back."""
    held = ""
    longest = max(map(len, request.stops), default=1)
    for delta in service.stream(request.messages, request.sampling, (request.side,)):
        held += delta.text
        places = [held.find(stop) for stop in request.stops if stop in held]
        if places:
            yield _Piece(held[: min(places)], "stop", delta.num_tokens)
            return
        if delta.is_done:
            yield _Piece(held, _REASONS[delta.stopped_by], delta.num_tokens)
            return
        ready = held if not request.stops else held[: max(len(held) - longest + 1, 0)]
        held = held[len(ready) :]
        if ready:
            yield _Piece(ready)
