"""The precise check of the memory on the Ready card, in a browser: asked for, seen working, found; and skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import Looked, chromium, served_page
from playwright.sync_api import Browser, expect

from qlora_ui.runs.workspace import Workspace

PATIENCE_MS = 120_000
"""The check takes five seconds; other tests may share the processor."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.mark.browser
@pytest.mark.slow
def test_a_check_is_made_on_demand_and_can_be_skipped(browser: Browser, tmp_path: Path) -> None:
    with served_page(Workspace.at(tmp_path / "workspace")) as served:
        looked = Looked(browser, served.url, "recipe")
        page, button = looked.page, looked.page.locator("#q-check")
        # On a processor the estimate knows what the check does not.
        expect(page.locator("#q-ready-state")).to_have_text("Ready", timeout=30_000)
        expect(button).to_be_hidden()
        page.locator("#q-device input").fill("RTX 3060")
        page.keyboard.press("Enter")
        expect(button).to_have_text("Check before the run", timeout=30_000)
        button.click()
        expect(button).to_have_text("Skip the check", timeout=10_000)
        expect(page.locator("#q-ready-check .q-progress")).to_be_visible()
        button.click()
        expect(button).to_have_text("Check before the run", timeout=10_000)
        expect(page.locator("#q-ready-check .q-progress")).to_have_count(0)
        button.click()
        found = page.locator("#q-ready-check")
        expect(found).to_contain_text("Checked", timeout=PATIENCE_MS)
        text = found.inner_text()
        assert re.search(r"the prediction says [\d.]+ [GM]iB \([+−-]\d+ ?%\)", text), text
        looked.assert_clean()
