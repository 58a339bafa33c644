"""Where and how the page is served: hostile environment, ports, logins."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.launch import Address, Login, find_port, host_names, launch_arguments, prepare_environment, serve

ROOT = Path(__file__).resolve().parents[2]


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
    arguments = launch_arguments(Address(), 7860, None)
    expected = {"share", "mcp_server", "ssr_mode", "pwa", "run_history", "enable_monitoring", "root_path", "server_name", "server_port"}
    expected |= {"allowed_paths", "blocked_paths", "num_workers", "debug", "inline", "share_server_address", "share_server_protocol"}
    assert expected <= set(arguments)
    assert not any(arguments[name] for name in ("share", "mcp_server", "ssr_mode", "pwa", "run_history", "enable_monitoring", "allowed_paths"))


def test_names_of_the_page() -> None:
    assert set(host_names("127.0.0.1")) == {"127.0.0.1", "localhost", "::1"}
    assert "10.1.2.3" in host_names("10.1.2.3")


SERVE = """
import os, sys, urllib.request
os.environ.update(GRADIO_SHARE="True", GRADIO_SERVER_NAME="0.0.0.0", GRADIO_ALLOWED_PATHS="/", GRADIO_MCP_SERVER="True",
                  HTTP_PROXY="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.launch import Address, serve
asked = []
import socket
plain = socket.getaddrinfo
def watched(host, *rest, **named):
    if host not in (None, "127.0.0.1", "localhost", "::1", b"127.0.0.1"):
        asked.append(host)
    return plain(host, *rest, **named)
socket.getaddrinfo = watched
served = serve(Workspace.at(sys.argv[1]), Address())
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
assert opener.open(served.url).status == 200
assert opener.open(served.url + "/config").status == 200
assert served.url.startswith("http://127.0.0.1:")
heavy = [name for name in ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes") if name in sys.modules]
served.close(5)
assert heavy == [], heavy
assert asked == [], asked
print("served")
"""


def test_a_hostile_environment_is_not_heard_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path / "workspace")], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["served"]
