"""A served page and a browser to look at it, for tests that bring their own runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.launch import Address, Served, serve

CHROMIUM = Path("/usr/bin/chromium")
WIDE: ViewportSize = {"width": 1280, "height": 800}
NARROW: ViewportSize = {"width": 420, "height": 900}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window; skips the test where there is none."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        # A GPU that is played by the processor takes a sixth more of it than none.
        flags = ["--no-sandbox", "--headless=new", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def served_page(workspace: Workspace) -> Iterator[Served]:
    """The app over a workspace, on a free port, in this process."""
    served = serve(workspace, Address())
    try:
        yield served
    finally:
        served.close(10)


class Looked:
    """A page that was opened, with what went wrong in it and where it asked."""

    def __init__(self, browser: Browser, url: str, tab: str, viewport: ViewportSize = WIDE) -> None:
        self.page: Page = browser.new_context(viewport=viewport).new_page()
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        self.page.goto(url)
        open_tab(self.page, tab)

    def assert_clean(self) -> None:
        """Nothing failed, nothing was asked of another host, nothing is wider than the screen."""
        assert self.problems == []
        assert self.hosts <= {"127.0.0.1", ""}, self.hosts
        widths = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert widths[0] <= widths[1], widths


def open_tab(page: Page, tab: str) -> None:
    """Open a tab by its id, waiting for the page to be there."""
    button = page.locator(f"#tab-{tab}-button")
    button.wait_for(timeout=30_000)
    button.click()
