"""The app as a user starts it: `app.py ui` in a process of its own, and pages whose every request is watched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ViewportSize, expect

from tests.ui.pages import NARROW, WIDE, Looked, chromium

# Several apps and browsers share two cores in a test run.
expect.set_options(timeout=15_000)

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Running:
    """An app in a process of its own."""

    url: str
    workspace: Path
    process: subprocess.Popen[str]

    def has_torch(self) -> bool:
        """Whether the process has loaded torch's library."""
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text(encoding="utf-8")


@contextlib.contextmanager
def started_app(workspace: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """`app.py ui` over a workspace until the block ends."""
    command = [sys.executable, str(ROOT / "app.py"), "ui", "--json", "--no-browser", "--no-warm-up", "--workspace", str(workspace), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(env or {})}
    with subprocess.Popen(command, cwd=workspace.parent, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(json.loads(process.stdout.readline())["url"], workspace, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An app over an empty workspace, shared by the tests of a file."""
    with started_app(tmp_path_factory.mktemp("app") / "workspace") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of a file."""
    with chromium() as found:
        yield found


@pytest.fixture
def visit(app: Running, browser: Browser) -> Iterator[Callable[..., Looked]]:
    """Opens pages of the app; at the end none of them has failed or has asked another host for anything."""
    opened: list[Looked] = []

    def open_page(tab: str = "model", *, narrow: bool = False, url: str = "") -> Looked:
        viewport: ViewportSize = NARROW if narrow else WIDE
        looked = Looked(browser, url or app.url, tab, viewport)
        looked.page.locator("#q-ready-state").wait_for(timeout=30_000)
        opened.append(looked)
        return looked

    yield open_page
    for looked in opened:
        looked.assert_clean()
        looked.page.context.close()
