"""Where and how the page is served: hostile environment, ports, logins."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs import thread
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui import launch
from qlora_ui.ui.blocks import Blocks
from qlora_ui.ui.launch import (
    Address,
    Login,
    closing_words,
    find_port,
    host_names,
    launch_arguments,
    prepare_environment,
    serve,
    wait_for_the_end,
)
from qlora_ui.ui.service import Service
from tests.journals import write_run


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_an_address_that_others_reach_needs_a_login(host: str, workspace: Workspace) -> None:
    with pytest.raises(QloraUiError) as caught:
        serve(workspace, Address(host))
    assert "--auth" in str(caught.value)


def test_a_short_password_is_refused(workspace: Workspace) -> None:
    with pytest.raises(QloraUiError, match="too short"):
        serve(workspace, Address(auth="me:123"))


def test_a_taken_port_is_refused_in_words_and_skipped_by_default() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(QloraUiError, match=f"Port {port} is taken"):
            find_port(Address(port=port))
    assert find_port(Address()) >= 7860


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_this_computer_is_named(host: str) -> None:
    with pytest.raises(QloraUiError, match=f"{host} is no address of this computer") as caught:
        find_port(Address(host))
    assert "0.0.0.0" in caught.value.problems[0].fix


def test_logins_are_limited_for_everybody_together() -> None:
    now = [0.0]
    login = Login("me", "a long password", clock=lambda: now[0])
    assert login("me", "a long password")
    assert not any(login("me", f"guess {number}") for number in range(5))
    assert not login("me", "a long password")
    now[0] = 61.0
    assert login("me", "a long password")


def test_variables_of_gradio_and_proxies_change_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_SHARE", "GRADIO_SERVER_NAME", "GRADIO_ALLOWED_PATHS", "GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "True")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "")
    prepare_environment(workspace)
    left = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    assert left == {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(workspace.temp / "uploads")}
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1"


def test_every_launch_argument_with_a_variable_is_given() -> None:
    """Gradio's own source says which arguments it would else take from the environment."""
    arguments = launch_arguments(Blocks(), Address(), 7860, None, ("localhost",))
    expected = {"share", "mcp_server", "ssr_mode", "pwa", "run_history", "enable_monitoring", "root_path", "server_name", "server_port"}
    expected |= {"allowed_paths", "blocked_paths", "num_workers", "debug", "inline", "share_server_address", "share_server_protocol"}
    assert expected <= set(arguments)
    off = ("share", "mcp_server", "ssr_mode", "pwa", "run_history", "enable_monitoring", "allowed_paths")
    assert not any(arguments[name] for name in off)


def test_names_of_the_page() -> None:
    assert set(host_names("127.0.0.1")) == {"127.0.0.1", "localhost", "::1"}
    assert "10.1.2.3" in host_names("10.1.2.3")


def test_a_started_app_goes_on_with_the_queue_of_the_one_before(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    monkeypatch.setattr(thread, "engine_object", lambda name: lambda path, *, turns: begun.set())
    monkeypatch.setattr(launch, "WARM_UP_AFTER_S", 0.3)
    before = Service(workspace)
    before.launcher.hold(True)
    run = before.launcher.start(RunConfig())
    before.shutdown(5)
    served = serve(workspace, Address())
    try:
        assert not begun.is_set() and read_run(run).status is Status.QUEUED
        assert begun.wait(10)
    finally:
        served.close(5)


def test_two_apps_at_once_get_different_ports(tmp_path: Path) -> None:
    apps = [serve(Workspace.at(tmp_path / name), Address()) for name in ("one", "two")]
    try:
        assert len({app.url for app in apps}) == 2
    finally:
        for app in apps:
            app.close(5)


def test_what_becomes_of_a_run_is_said_when_the_app_closes(workspace: Workspace) -> None:
    live = {where: read_run(write_run(workspace, values={"launch.where": where}, end="live")) for where in ("thread", "process")}
    assert closing_words(None, []) == "" and "Ending the export" in closing_words(None, ["export"])
    assert "saving it" in closing_words(live["thread"], ["export"])
    own = closing_words(live["process"], ["export"])
    assert "goes on in its own process" in own and "saving" not in own and "Ending the export" in own


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_closed_terminal_ends_the_app_with_its_run_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    view = SimpleNamespace(status=Status.RUNNING, name="a run", id="1", config=None)
    served: Any = SimpleNamespace(service=SimpleNamespace(view=lambda run_id: view, worked_on=dict), close=lambda: closed.append(True))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.close()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and the app leaves it so
    try:
        # The system and the shell say so, each.
        for wait_s in (0.05, 0.1):
            threading.Timer(wait_s, os.kill, (os.getpid(), signal.SIGHUP)).start()
        wait_for_the_end(served)
        time.sleep(0.15)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert closed == [True]
