"""The loaded model under OpenAI's chat API on this computer, so that any program that speaks it can try the adapter.

Only 127.0.0.1 listens. A page in the browser could send requests there too: Host and Origin are checked, and a body must say
that it is JSON, which no page of another site may do unasked. Pages that this computer itself serves may ask, and read the answer.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.units import MIB
from qlora_ui.engine.chat import ChatService
from qlora_ui.engine.chat_request import BadRequest, ChatRequest, error_body, read_request, side_named, status_of

MAX_BODY_BYTES = 4 * MIB
_log = logging.getLogger(__name__)
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_REASONS = {"end": "stop", "length": "length", "context": "length"}
_CHAT, _MODELS = "/v1/chat/completions", "/v1/models"


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    # On Windows this would give a port that another server listens on to both of them.
    allow_reuse_address = os.name != "nt"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up between two requests is nobody's business; the library would print a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            _log.exception("A connection to the chat server failed")


class ChatServer:
    """Serves a ChatService until `stop`; one answer at a time, others wait."""

    def __init__(self, service: ChatService, port: int = 0, key: str = "") -> None:
        """`port` 0 takes a free one; with `key` every request must bring it as a bearer token. Raises QloraUiError where the
        port is taken."""
        self.service = service
        self.key = key
        self.turn = threading.Lock()
        self.is_closing = False
        self.since = int(time.time())
        handler = type("Handler", (_Handler,), {"owner": self})
        try:
            self._http = _HttpServer(("127.0.0.1", port), handler)
        except OSError as error:
            raise QloraUiError(
                f"Port {port} cannot be used.", why=error.strerror or str(error), fix="Give another one, or 0 for any.", code="port"
            ) from None
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
        """Stop listening and end the answer that is being given; who waits for one is told."""
        self.is_closing = True
        self.service.stop()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def models(self) -> dict[str, Any]:
        """The sides of what is loaded, as OpenAI lists models."""
        loaded = self.service.loaded()
        return {"object": "list", "data": [self.model(side) for side in (loaded.sides if loaded else ())]}

    def model(self, name: str) -> dict[str, Any]:
        """One side, as OpenAI describes a model; raises BadRequest where there is none of that name."""
        loaded = self.service.loaded()
        side = side_named(name, loaded.sides if loaded else (), loaded.name if loaded else "")
        return {"id": side, "object": "model", "created": self.since, "owned_by": loaded.name if loaded else ""}


class _Handler(BaseHTTPRequestHandler):
    owner: ChatServer
    protocol_version = "HTTP/1.1"
    server_version = "qlora-ui"
    sys_version = ""

    def do_GET(self) -> None:
        self._guarded(self._models)

    def do_POST(self) -> None:
        self._guarded(lambda: self._chat() if self._path() == _CHAT else self._unknown())

    def do_OPTIONS(self) -> None:
        """What a browser asks before it lets a page of another port of this computer send JSON; without the key, which comes later."""
        self._guarded(self._allow, self._check_place)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself (a method, a line that is no HTTP), in the form of all other errors."""
        self._error(BadRequest(f"{message or 'This is no request that is answered here'}.", code))

    def end_headers(self) -> None:
        headers = getattr(self, "headers", None)  # none where the first line was refused
        origin = headers.get("Origin") if headers is not None else None
        if origin is not None and _is_here(origin):
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Vary", "Origin")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: conversations and their addresses are nobody's business."""

    def _guarded(self, work: Callable[[], None], check: Callable[[], None] | None = None) -> None:
        try:
            (check or self._check_sender)()
            work()
        except QloraUiError as error:
            self._error(error)
        except ConnectionError:
            self.close_connection = True
        except Exception:
            # One of two boundaries of this server (the other is a stream that has begun): the client gets an answer, the log the bug.
            _log.exception("A request to the chat server failed")
            self._error(QloraUiError("The server failed; its log says more.", code="internal"))

    def _check_place(self) -> None:
        origin = self.headers.get("Origin")
        if not _is_here(self.headers.get("Host") or ""):
            raise BadRequest("This host name is not served.", 421, "host")
        if origin is not None and not _is_here(origin):
            raise BadRequest("Pages of other sites are not served.", 403, "origin")

    def _check_sender(self) -> None:
        self._check_place()
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.owner.key and not hmac.compare_digest(given.encode(), self.owner.key.encode()):
            raise BadRequest("The key is missing or wrong.", 401, "invalid_api_key")

    def _path(self) -> str:
        return self.path.split("?", maxsplit=1)[0].rstrip("/")

    def _models(self) -> None:
        path = self._path()
        if path == _MODELS:
            self._json(200, self.owner.models())
        elif path.startswith(f"{_MODELS}/"):
            self._json(200, self.owner.model(unquote(path.removeprefix(f"{_MODELS}/"))))
        else:
            self._unknown()

    def _unknown(self) -> None:
        for known, method in ((_CHAT, "POST"), (_MODELS, "GET")):
            if self._path() == known:
                raise BadRequest(f"{known} is asked with {method}.", 405, "method_not_allowed")
        raise BadRequest(f"There are only {_MODELS} and {_CHAT}.", 404, "not_found")

    def _allow(self) -> None:
        self.send_response(204)
        self.send_header("Access-Control-Allow-Methods", "GET, POST")
        # Clients add headers of their own (X-Stainless-…), which change nothing here.
        self.send_header("Access-Control-Allow-Headers", self.headers.get("Access-Control-Request-Headers") or "*")
        self.end_headers()

    def _body(self) -> dict[str, Any]:
        if (self.headers.get("Content-Type") or "").split(";")[0].strip().lower() != "application/json":
            raise BadRequest("The body must be application/json.", 415)
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
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
        with self.owner.turn, contextlib.closing(self._pieces(request)) as pieces:
            if request.is_streamed:
                self._stream(head, pieces, request)
            else:
                self._whole(head, pieces, request)

    def _whole(self, head: Mapping[str, Any], pieces: Iterator[_Piece], request: ChatRequest) -> None:
        text, last = "", _Piece("")
        for last in pieces:
            text += last.text
            self._check_client()
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": last.finish_reason}
        usage = self._usage(request, last.num_tokens)
        self._json(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def _check_client(self) -> None:
        """Raise BrokenPipeError where the client has hung up, so that nobody waits behind an answer that nobody reads."""
        self.connection.setblocking(False)
        try:
            gone = self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            gone = False
        finally:
            self.connection.setblocking(True)
        if gone:
            raise BrokenPipeError

    def _stream(self, head: Mapping[str, Any], pieces: Iterator[_Piece], request: ChatRequest) -> None:
        # Errors of the first piece (a conversation that is too long) still get a status of their own.
        first = next(pieces, None)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        try:
            self._chunks(head, first, pieces, request)
        except ConnectionError:
            raise
        except QloraUiError as error:
            self._event(error_body(error))
        except Exception:
            _log.exception("A streamed answer failed")
            self._event(error_body(QloraUiError("The server failed; its log says more.", code="internal")))
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunks(self, head: Mapping[str, Any], first: _Piece | None, pieces: Iterator[_Piece], request: ChatRequest) -> None:
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

    def _pieces(self, request: ChatRequest) -> Generator[_Piece]:
        """The answer's text, up to the first stop text; what could be the beginning of one is held back."""
        held = ""
        longest = max(map(len, request.stops), default=1)
        self._check_open()
        for delta in self.owner.service.stream(request.messages, request.sampling, (request.side,)):
            held += delta.text
            places = [held.find(stop) for stop in request.stops if stop in held]
            if places:
                yield _Piece(held[: min(places)], "stop", delta.num_tokens)
                return
            if delta.is_done:
                # One that was cut short must not look like one that is whole.
                self._check_open(delta.stopped_by)
                yield _Piece(held, _REASONS[delta.stopped_by], delta.num_tokens)
                return
            ready = held if not request.stops else held[: max(len(held) - longest + 1, 0)]
            held = held[len(ready) :]
            if ready:
                yield _Piece(ready)

    def _check_open(self, stopped_by: str = "") -> None:
        if self.owner.is_closing or stopped_by == "stop":
            raise BadRequest("The server is closing.", 503, "closing")

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
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, error: QloraUiError) -> None:
        # A body that was not read would be taken for the next request.
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self._json(status_of(error), error_body(error))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text to send on; the last one has a reason."""

    text: str
    finish_reason: str | None = None
    num_tokens: int = 0


def _is_here(place: str) -> bool:
    """Whether a Host or an Origin names this computer by itself."""
    return place.split("://", maxsplit=1)[-1].rsplit(":", maxsplit=1)[0].lower() in _HOSTS
