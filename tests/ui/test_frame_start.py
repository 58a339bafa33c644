"""Starting and ending: nothing heavy, nothing foreign, and a job that is stopped and saved."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Running, started_app
from pages import Looked, chromium
from playwright.sync_api import expect

from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import save_preset
from qlora_ui.settings.run_config import RunConfig

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


def _wait_for_steps(workspace: Workspace, app: Running, limit_s: float = 90) -> None:
    """Until the run has done a step, or the test has waited too long."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and app.process.poll() is None:
        runs = list_runs(workspace)
        if runs and read_run(runs[0]).step > 0:
            return
        time.sleep(0.5)
    raise AssertionError("no step was done in time")


@pytest.mark.slow  # the same signal to a job of the command line: tiny/test_job_cli.py
def test_start_trains_and_sigterm_stops_and_saves(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = Workspace.at(tmp_path / "workspace")
    config = RunConfig().changed({"model.id": str(tiny_model_dir), "data.max_length": 64, "train.max_steps": 100000, "train.epochs": 1000})
    save_preset("long", "Long", config, workspace.presets)
    with started_app(workspace.root) as app, chromium() as browser:
        looked = Looked(browser, app.url, "recipe")
        page = looked.page
        expect(page.locator("#q-ready-state")).to_have_text("Ready", timeout=20_000)
        page.locator("#q-preset input").click()
        page.get_by_role("option", name="Long").click()
        expect(page.locator("#q-undo")).to_contain_text("Preset")
        expect(page.locator("#q-ready")).to_contain_text("tiny-llama")
        expect(page.locator("#q-ready-state")).to_have_text("Ready")
        page.locator("#q-start").click()
        expect(page.locator("#tab-train-button")).to_have_attribute("aria-selected", "true")
        _wait_for_steps(workspace, app)
        expect(page.locator("#q-run-chip")).to_contain_text("Running", timeout=20_000)
        assert len(list_runs(workspace)) == 1
        page.context.close()
        began = time.monotonic()
        app.process.send_signal(signal.SIGTERM)
        assert app.process.wait(40) == 0
        assert time.monotonic() - began < 32
    view = read_run(list_runs(workspace)[0])
    assert view.status is Status.STOPPED
    assert (view.run.adapter / "adapter_model.safetensors").is_file()
