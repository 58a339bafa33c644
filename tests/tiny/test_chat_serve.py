"""The endpoint as a client sees it, and as somebody sees it who should not."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talk import HELLO, answers, write_adapter

from qlora_ui.engine.chat import ChatService, Delta
from qlora_ui.engine.serve import ChatServer
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling

GREEDY = {"messages": [{"role": "user", "content": HELLO[0].content}], "temperature": 0, "max_tokens": 16}


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    workspace = Workspace.at(tmp_path_factory.mktemp("serve"))
    run = create_run(workspace, RunConfig().changed({"model.id": str(tiny_model_dir), "launch.device": "cpu"}))
    write_adapter(run.adapter, tiny_model_dir, 6)
    service = ChatService(workspace, Card())
    service.load(ChatTarget(run_id=run.id))
    server = ChatServer(service, key="secret")
    server.start()
    yield server
    server.stop()
    service.close()


def ask(server: ChatServer, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    sent = {"Authorization": "Bearer secret", "Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, sent)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_models_and_a_whole_answer(server: ChatServer) -> None:
    status, text = ask(server, "/models")
    assert status == 200 and [model["id"] for model in json.loads(text)["data"]] == ["base", "adapter"]
    for side in ("base", "adapter"):
        status, text = ask(server, "/chat/completions", {**GREEDY, "model": side})
        said = json.loads(text)
        assert status == 200 and said["choices"][0]["finish_reason"] in ("stop", "length")
        own = answers(server.service.stream(HELLO, Sampling(temperature=0, max_tokens=16), (side,)))
        assert said["choices"][0]["message"]["content"] == own[side]
        assert said["usage"]["completion_tokens"] <= 16


def test_streaming_and_stop_texts(server: ChatServer) -> None:
    whole = json.loads(ask(server, "/chat/completions", GREEDY)[1])["choices"][0]["message"]["content"]
    body = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    status, text = ask(server, "/chat/completions", body)
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert status == 200 and lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"]) == whole
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert len(whole) >= 3
    stop = whole[len(whole) // 2 :][:2]
    cut = json.loads(ask(server, "/chat/completions", {**GREEDY, "stop": [stop]})[1])["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"messages": "hi"}, 400),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        ({**GREEDY, "model": "gpt-4"}, 404),
        ({**GREEDY, "n": 2}, 400),
        ({**GREEDY, "temperature": "hot"}, 400),
        ({**GREEDY, "temperature": -3}, 400),
        ({"messages": [{"role": "user", "content": "hello " * 5000}]}, 400),
        ({**GREEDY, "max_tokens": 0}, 400),
        ({**GREEDY, "max_completion_tokens": 1.5}, 400),
        ({**GREEDY, "max_tokens": 10**400}, 400),
        ({**GREEDY, "stop": 5}, 400),
        ({**GREEDY, "stop": ["a", ""]}, 400),
        ({**GREEDY, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400),
        ({**GREEDY, "response_format": {"type": "json_object"}}, 400),
        ({**GREEDY, "logprobs": True}, 400),
        ({**GREEDY, "top_logprobs": 3}, 400),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400),
        (b"{", 400),
        (b"[]", 400),
    ],
)
def test_wrong_requests_get_words(body: Any, status: int, server: ChatServer) -> None:
    got, text = ask(server, "/chat/completions", body)
    assert got == status and json.loads(text)["error"]["message"]
    streamed = {**body, "stream": True} if isinstance(body, dict) else body
    assert ask(server, "/chat/completions", streamed)[0] == status


def test_a_stream_is_wanted_or_not(server: ChatServer) -> None:
    assert ask(server, "/chat/completions", {**GREEDY, "stream": "true"})[0] == 400
    assert ask(server, "/chat/completions", {**GREEDY, "stream": None})[0] == 200


def test_a_conversation_that_is_too_long_has_the_code_that_clients_know(server: ChatServer) -> None:
    text = ask(server, "/chat/completions", {"messages": [{"role": "user", "content": "hello " * 5000}]})[1]
    assert json.loads(text)["error"]["code"] == "context_length_exceeded"


def test_what_clients_send_by_themselves_is_taken(server: ChatServer) -> None:
    more = {"n": 1, "stop": None, "tools": [], "response_format": {"type": "text"}, "presence_penalty": 0, "logprobs": False, "user": "x"}
    said = [json.loads(ask(server, "/chat/completions", {**GREEDY, **extra})[1])["choices"][0]["message"] for extra in ({}, more)]
    assert said[0] == said[1]


def test_one_model_by_its_name(server: ChatServer) -> None:
    listed = json.loads(ask(server, "/models")[1])["data"]
    assert json.loads(ask(server, "/models/adapter")[1]) == listed[1] and listed[1]["created"] > 1_700_000_000
    assert ask(server, "/models/gpt-4")[0] == 404


def _connection(server: ChatServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", int(server.url.split(":")[2].split("/")[0]), timeout=60)


def test_a_refused_request_says_that_the_line_is_closed(server: ChatServer) -> None:
    connection = _connection(server)
    for path, is_closed in (("/v1/models", False), ("/v1/nothing", True)):
        connection.request("GET", path, headers={"Authorization": "Bearer secret"})
        answer = connection.getresponse()
        answer.read()
        assert (answer.getheader("Connection") == "close") is is_closed
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("DELETE", "/v1/models/adapter", 501), ("GET", f"/v1/{'a' * 70_000}", 414), ("GET", "/v1/chat/completions", 405)],
)
def test_every_refusal_is_json(server: ChatServer, method: str, path: str, status: int) -> None:
    connection = _connection(server)
    connection.request(method, path, headers={"Authorization": "Bearer secret"})
    answer = connection.getresponse()
    assert answer.status == status and json.loads(answer.read())["error"]["message"]
    connection.close()


def test_a_page_of_this_computer_may_ask(server: ChatServer) -> None:
    connection = _connection(server)
    for origin, status in (("http://localhost:3000", 204), ("https://evil.example", 403)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert answer.getheader("Access-Control-Allow-Origin") == (origin if status == 204 else None)
    connection.request("GET", "/v1/models", headers={"Authorization": "Bearer secret", "Origin": "http://localhost:3000"})
    assert connection.getresponse().getheader("Access-Control-Allow-Origin") == "http://localhost:3000"
    connection.close()


def test_a_client_that_hangs_up_between_requests_leaves_no_traceback(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    is_over, real = threading.Event(), server._http.shutdown_request
    monkeypatch.setattr(server._http, "shutdown_request", lambda request: (real(request), is_over.set()))
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))) as line:
        line.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n\r\n")
        line.recv(10)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as a client that is killed
    assert is_over.wait(30)
    assert not caplog.records and not capsys.readouterr().err


def test_an_answer_cut_short_by_the_end_of_the_server_does_not_look_whole(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = [Delta("adapter", "Hal"), Delta("adapter", "", is_done=True, stopped_by="stop")]
    monkeypatch.setattr(server.service, "stream", lambda *_: iter(cut))
    status, text = ask(server, "/chat/completions", GREEDY)
    assert status == 503 and json.loads(text)["error"]["type"] == "server_error"
    text = ask(server, "/chat/completions", {**GREEDY, "stream": True})[1]
    assert "Hal" in text and 'finish_reason": "stop' not in text and '"code": "closing"' in text


def test_a_bug_is_an_answer_too(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> tuple[int, int]:
        raise ZeroDivisionError

    monkeypatch.setattr(server.service, "count_tokens", broken)
    status, text = ask(server, "/chat/completions", GREEDY)
    assert status == 500 and json.loads(text)["error"]["type"] == "server_error"
    status, text = ask(server, "/chat/completions", {**GREEDY, "stream": True, "stream_options": {"include_usage": True}})
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert status == 200 and json.loads(lines[-2])["error"]["type"] == "server_error" and lines[-1] == "[DONE]"


def test_nobody_waits_behind_a_client_that_hung_up(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    given, stopped = threading.Event(), threading.Event()
    real = server.service.stream

    def endless(*_: Any) -> Iterator[Delta]:
        try:
            while True:
                given.set()
                yield Delta("adapter", "x")
                time.sleep(0.01)
        finally:
            stopped.set()

    monkeypatch.setattr(server.service, "stream", endless)
    connection = _connection(server)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(GREEDY), {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    )
    assert given.wait(30)
    connection.close()
    assert stopped.wait(30)
    monkeypatch.setattr(server.service, "stream", real)
    assert ask(server, "/chat/completions", GREEDY)[0] == 200


def test_strangers_are_not_served(server: ChatServer) -> None:
    assert ask(server, "/chat/completions", GREEDY, Authorization="Bearer wrong")[0] == 401
    assert ask(server, "/chat/completions", GREEDY, Origin="https://evil.example")[0] == 403
    assert ask(server, "/models", Host="evil.example")[0] == 421
    assert ask(server, "/chat/completions", GREEDY, Content_Type="text/plain")[0] == 415
    assert ask(server, "/nothing")[0] == 404
    assert ask(server, "/models", Origin="http://127.0.0.1:7860")[0] == 200
