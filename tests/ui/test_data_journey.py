"""From a user's own table to a trained adapter: upload, mapping, preview, lint, fix, train; with the mouse and with the keyboard alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import started_app
from pages import NARROW, WIDE, Looked, chromium, open_tab
from playwright.sync_api import Page, ViewportSize, expect

from qlora_ui.base.files import write_json
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import save_preset
from qlora_ui.settings.run_config import RunConfig

pytestmark = pytest.mark.slow

TINY = {"data.max_length": 96, "train.max_steps": 3, "train.batch_size": 2, "train.accumulation": 1, "output.name": "Own table"}
WIDTHS = {"wide": WIDE, "narrow": NARROW}


def write_table(path: Path) -> Path:
    """A table whose columns nothing can guess, with one empty answer."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["thema", "ask", "say"])
        for number in range(24):
            writer.writerow([f"t{number}", f"Question {number}?", "" if number == 5 else f"Answer {number} for you"])
    return path


def workspace_with_model(root: Path, model: Path) -> Workspace:
    """A workspace whose preset “tiny” is a few steps of the two-layer model."""
    workspace = Workspace.at(root)
    save_preset("tiny", "Tiny", RunConfig().changed({"model.id": str(model), **TINY}), workspace.presets)
    return workspace


def assert_trained(page: Page, workspace: Workspace) -> None:
    """The run ended well and learned from the fixed version of the table."""
    expect(page.get_by_role("button", name="Chat with it")).to_be_visible(timeout=60_000)
    run = list_runs(workspace)[0]
    assert read_run(run).status is Status.DONE and (run.adapter / "adapter_model.safetensors").is_file()
    sources = run.config().data.sources
    assert [Path(source.id).name.startswith("table-") for source in sources] == [True] and "-v2" in sources[0].id


@pytest.mark.parametrize("width", WIDTHS)
def test_with_the_mouse(width: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = workspace_with_model(tmp_path / "workspace", tiny_model_dir)
    table = write_table(tmp_path / "table.csv")
    with started_app(workspace.root) as app, chromium() as browser:
        looked = Looked(browser, app.url, "data", WIDTHS[width])
        page = looked.page
        expect(page.locator("#q-verdict")).to_have_text("Ready")
        page.locator("input[type=file]").first.set_input_files(table)
        expect(page.locator("#q-sources")).to_contain_text("table.csv")
        expect(page.locator(".q-source")).to_have_count(1)

        # A preset is a recipe: the user's data stays.
        open_tab(page, "recipe")
        page.locator("#q-preset input").click()
        page.get_by_role("option", name="Tiny", exact=True).click()
        expect(page.locator("#q-undo")).to_be_visible()
        open_tab(page, "data")
        expect(page.locator("#q-sources")).to_contain_text("table.csv")
        expect(page.locator("#q-sources")).not_to_contain_text("comes with the app")

        page.get_by_label("Meaning of ask").select_option("user")
        expect(page.get_by_label("Meaning of ask")).to_have_value("user")
        page.get_by_label("Meaning of say").select_option("assistant")
        expect(page.locator("#q-row")).to_contain_text("Answer 0 for you")
        expect(page.locator("#q-verdict")).to_have_text("Look at this")

        page.locator("#q-row-worst").click()
        expect(page.locator("#q-row .q-token, #q-row [class*=tok]").first).to_be_visible(timeout=90_000)
        finding = page.locator(".q-finding", has_text="empty answer")
        finding.get_by_role("button", name="Leave this row out").click()
        expect(page.locator("#q-verdict-body")).to_contain_text("23 rows", timeout=20_000)
        expect(page.locator(".q-finding", has_text="empty answer")).to_have_count(0)
        start(page, width)
        assert_trained(page, workspace)
        looked.assert_clean()


def start(page: Page, width: str) -> None:
    """Press Start, on a small screen in the bar that opens."""
    if width == "narrow":
        page.locator("[data-ready-toggle]").click()
    expect(page.locator("#q-start")).to_be_enabled()
    page.locator("#q-start").click()
    if width == "narrow":
        # The bar closes: what was begun, or waits, is shown behind it.
        expect(page.locator("#q-ready .q-facts")).to_be_hidden()


@pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["narrow", "wide"])
def test_with_the_keyboard_alone(viewport: ViewportSize, tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = workspace_with_model(tmp_path / "workspace", tiny_model_dir)
    config = RunConfig().changed({"model.id": str(tiny_model_dir), **TINY})
    write_json(workspace.root / "draft.json", {"preset": "tiny", "settings": config.to_nested(only_changed=True)})
    table = write_table(tmp_path / "table.csv")
    with started_app(workspace.root) as app, chromium() as browser:
        looked = Looked(browser, app.url, "model", viewport)
        page = looked.page
        press(page, "#tab-data-button", "Enter")
        expect(page.locator("#q-verdict")).to_have_text("Ready")

        with page.expect_file_chooser() as chooser:
            press(page, "#q-upload", "Enter")
        chooser.value.set_files(table)
        expect(page.locator("#q-sources")).to_contain_text("table.csv")
        expect(page.get_by_label("Meaning of ask")).to_be_visible()
        tab_to(page, "select[data-id=ask]")
        # One letter: a list begins anew after a second, which a busy machine may take for a word.
        page.keyboard.press("q")
        page.keyboard.press("Tab")
        expect(page.locator("select[data-id=ask]")).to_have_value("user")
        expect(page.locator("#q-ready-problems")).to_contain_text("answer")
        tab_to(page, "select[data-id=say]")
        page.keyboard.press("a")
        page.keyboard.press("Tab")
        expect(page.locator("#q-row")).to_contain_text("Answer 0 for you")

        press(page, "#q-row-next", "Space")
        expect(page.locator("#q-row")).to_contain_text("Answer 1 for you")
        press(page, ".q-finding [data-act=fix]", "Enter")
        expect(page.locator("#q-verdict-body")).to_contain_text("23 rows", timeout=20_000)
        if viewport is NARROW:
            press(page, "[data-ready-toggle]", "Enter")
        expect(page.locator("#q-start")).to_be_enabled()
        press(page, "#q-start", "Enter")
        assert_trained(page, workspace)
        looked.assert_clean()


def press(page: Page, selector: str, key: str) -> None:
    """Walk to a control and press a key on it."""
    tab_to(page, selector)
    page.keyboard.press(key)


def tab_to(page: Page, selector: str, limit: int = 160) -> None:
    """Press Tab until the control has the focus; it must be seen there."""
    for _ in range(limit):
        if page.evaluate("selector => !!document.activeElement.closest(selector)", selector):
            assert page.evaluate("document.activeElement.getClientRects().length") > 0
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached with Tab")
