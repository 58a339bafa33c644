"""The journey after the run with the built-in model, in Chromium at both widths; opt-in, since it takes minutes and fetches a converter.

    QLORA_UI_LONG=1 QLORA_UI_DEMO_WORKSPACE=DIR [QLORA_UI_PICTURES=DIR] python -m pytest tests/ui/test_demo_journey.py

DIR is a workspace with a finished run of the demo preset (`app.py train --preset demo --workspace DIR`); a copy of it is used.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Running, started_app
from exported import private_parts
from pages import NARROW, WIDE, Looked, open_tab
from playwright.sync_api import Browser, Page, expect

GIVEN = os.environ.get("QLORA_UI_DEMO_WORKSPACE", "")
PICTURES = os.environ.get("QLORA_UI_PICTURES", "")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (os.environ.get("QLORA_UI_LONG") and GIVEN), reason="minutes: set QLORA_UI_LONG=1 and QLORA_UI_DEMO_WORKSPACE"),
]
MINUTES = 60_000


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An app over a copy of the demo's workspace, its exports and evaluations left out."""
    workspace = tmp_path_factory.mktemp("demo") / "workspace"
    shutil.copytree(GIVEN, workspace, ignore=shutil.ignore_patterns("exports", "evaluation.json", "temp"))
    with started_app(workspace) as running:
        yield running


def test_compare_and_evaluate(app: Running, browser: Browser) -> None:
    looked = Looked(browser, app.url, "runs")
    page = looked.page
    page.locator(".q-col-name button").first.click(timeout=MINUTES)
    page.locator("button.q-button-large", has_text="Chat with it").click(timeout=MINUTES)
    page.get_by_label("Message").fill("What is the capital of France?")
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".q-answer-adapter").last).to_contain_text("matey", timeout=5 * MINUTES)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=5 * MINUTES)
    _picture(page, "compare-1280")
    open_tab(page, "evaluate")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    expect(page.locator(".q-receipt-text")).to_contain_text("your adapter gains", timeout=8 * MINUTES)
    expect(page.locator(".q-dotplot .q-dot-value")).to_have_count(5)
    expect(page.locator(".q-answer-adapter").first).to_contain_text("matey")
    _picture(page, "evaluate-1280")
    looked.assert_clean()


@pytest.mark.parametrize(("form", "narrow"), [("gguf-q8_0", False), ("ollama", True), ("merged-dequantized", True)])
def test_files_for_other_programs(app: Running, browser: Browser, form: str, narrow: bool) -> None:
    looked = Looked(browser, app.url, "export", NARROW if narrow else WIDE)
    page = looked.page
    card = page.locator(f"#export-{form}")
    card.get_by_role("button", name="Make it").click(timeout=MINUTES)
    cancel = page.locator(".q-work").get_by_role("button", name="Cancel")
    expect(cancel).to_be_visible(timeout=MINUTES)
    _picture(page, f"making-{form}-{'420' if narrow else '1280'}")
    cancel.click()
    expect(page.locator(".q-work")).to_have_count(0, timeout=MINUTES)
    run = next((app.workspace / "runs").iterdir())
    assert not (run / "exports" / form).exists() and not list(run.glob("exports/.making-*"))
    card.get_by_role("button", name="Make it").click()
    save = card.get_by_role("button", name="Download")
    expect(save).to_be_visible(timeout=10 * MINUTES)
    expect(card).to_contain_text("the chat's answer on")
    _picture(page, f"made-{form}-{'420' if narrow else '1280'}")
    with page.expect_download(timeout=2 * MINUTES) as waiting:
        save.click()
    with zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes())) as packed:
        files = {info.filename: packed.read(info) for info in packed.infolist() if not info.is_dir()}
    assert private_parts(files, [str(app.workspace), str(app.workspace.parent), str(Path.home()) + "/"]) == []
    if form == "ollama":
        assert b"TEMPLATE" in files["Modelfile"] and b'PARAMETER stop "<|im_end|>"' in files["Modelfile"]
    assert any(name.endswith(".safetensors" if form.startswith("merged") else ".gguf") for name in files)
    looked.assert_clean()


def _picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")
