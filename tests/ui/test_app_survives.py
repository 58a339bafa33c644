"""The app itself under rough handling: a hundred presses of Start at once, a kill in the middle of a run, two apps on one workspace."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT, started_app
from pages import Looked, chromium
from playwright.sync_api import expect

from qlora_ui.base.files import write_json
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import Request, Status
from qlora_ui.runs.workspace import Workspace
from tests.bench import pages as bench
from tests.tiny.jobs import tiny_config, write_rows

pytestmark = pytest.mark.browser

NUM_PRESSES = 100
NUM_PAGES = 10
NUM_CLOSED = 9
"""Fifty in tests/bench/pages.py."""


def until(holds: Callable[[], object], timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def with_draft(root: Path, model_dir: Path, **changes: Any) -> Workspace:
    """A workspace whose pages open with these settings."""
    workspace = Workspace.at(root / "workspace")
    config = tiny_config(model_dir, write_rows(root / "rows.jsonl"), **changes)
    write_json(workspace.root / "draft.json", {"preset": "", "settings": config.to_nested(only_changed=True)})
    return workspace


def press_start(url: str, times: int, pages: int) -> list[int]:
    """Press Start as so many pages do, all at once; returns the answers' codes."""
    config = httpx.get(f"{url}/config", timeout=30).json()
    by_id = {item["id"]: item for item in config["components"]}
    button = next(item["id"] for item in config["components"] if item["props"].get("elem_id") == "q-start")
    event = next(item for item in config["dependencies"] if [button, "click"] in item["targets"])
    data = [None if by_id[i]["type"] == "state" else by_id[i]["props"].get("value") for i in event["inputs"]]
    sessions = [secrets.token_hex(6) for _ in range(pages)]

    def press(number: int) -> int:
        body = {"data": data, "fn_index": event["id"], "session_hash": sessions[number % pages], "trigger_id": button, "event_data": None}
        return httpx.post(f"{url}/gradio_api/queue/join", json=body, timeout=60).status_code

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(press, range(times)))


@pytest.mark.slow
def test_a_hundred_presses_at_once_start_one_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = with_draft(tmp_path, tiny_model_dir, train__max_steps=100_000, train__schedule="constant", eval__share=0)
    with started_app(workspace.root) as app:
        # The server lets so many wait at a time and sends the rest away.
        answers = press_start(app.url, NUM_PRESSES, NUM_PAGES)
        assert len(answers) == NUM_PRESSES and set(answers) <= {200, 503} and answers.count(200) >= NUM_PRESSES // 3
        until(lambda: list_runs(workspace) and read_run(list_runs(workspace)[0]).steps)
        # The last of the presses has been heard long since.
        time.sleep(2)
        (run,) = list_runs(workspace)
        assert read_run(run).status is Status.RUNNING
    assert read_run(run).status is Status.STOPPED
    assert (run.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_pages_that_come_and_go_in_the_middle_of_a_run_lose_no_point(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = with_draft(tmp_path, tiny_model_dir, train__max_steps=100_000, train__schedule="constant", eval__share=0)
    with started_app(workspace.root) as app:
        press_start(app.url, 1, 1)
        until(lambda: list_runs(workspace) and read_run(list_runs(workspace)[0]).steps)
        (run,) = list_runs(workspace)
        site = bench.Site.at(app.url)
        closing = bench.opened_and_closed(site, run.path, NUM_CLOSED)
        assert closing["errors"] == 0 and closing["steps_meanwhile"] > 0
        run.request(Request.STOP)
        until(lambda: read_run(run).status is Status.STOPPED)
        time.sleep(1.5)
        result = bench.compared(closing["readers"], run.path)
    assert len(result["points_on_each_page"]) == 3
    assert [reader.errors for reader in closing["readers"]] == [[], [], []]
    assert result["no_point_lost"] and result["curves_identical"], result


@pytest.mark.slow  # a job outlives its app in tiny/test_job_process.py, and a page finds a run again in test_journey.py
def test_the_app_is_killed_and_its_run_is_there_when_it_comes_back(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = with_draft(tmp_path, tiny_model_dir, launch__where="process", train__max_steps=200, output__save_every=100, eval__share=0)
    with started_app(workspace.root) as app:
        press_start(app.url, 1, 1)
        until(lambda: list_runs(workspace) and read_run(list_runs(workspace)[0]).steps)
        (run,) = list_runs(workspace)
        app.process.send_signal(signal.SIGKILL)
        app.process.wait()
    at_the_kill = read_run(run).step
    assert 0 < at_the_kill < 200
    with started_app(workspace.root) as app, chromium() as browser:
        looked = Looked(browser, app.url, "train")
        expect(looked.page.locator("#train-head")).to_contain_text("200", timeout=20_000)
        until(lambda: read_run(run).status is Status.DONE)
        expect(looked.page.locator("#train-head")).to_contain_text("Done", timeout=20_000)
        expect(looked.page.locator("#train-charts-loss desc")).to_contain_text("at step 200", timeout=20_000)
        looked.assert_clean()
        looked.page.context.close()
    assert [event.step for event in read_run(run).steps] == list(range(1, 201))
    assert (run.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_second_app_on_the_workspace_says_who_has_it(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "workspace")
    with started_app(workspace.root) as app:
        second = subprocess.run(
            [sys.executable, str(ROOT / "app.py"), "ui", "--no-browser", "--workspace", str(workspace.root)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert second.returncode != 0
        words = second.stdout + second.stderr
        assert f"process {app.process.pid}" in words and app.url in words and "--workspace" in words
        assert "Traceback" not in words
