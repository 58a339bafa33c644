"""From nothing to a chat, as a newcomer does it: on a two-layer model, in real Chromium."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import started_app
from pages import NARROW, Looked, chromium, open_tab
from playwright.sync_api import Page, expect

from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import save_preset
from qlora_ui.settings.run_config import RunConfig

TINY = {
    "data.max_length": 64,
    "train.max_steps": 20_000,
    "train.epochs": 1000,
    "train.learning_rate": 1e-3,
    "eval.every": 50,
    "output.save_every": 50,
    "output.name": "Tiny pirate",
}


def test_select_change_start_reload_stop_chat(tmp_path: Path, tiny_model_dir: Path) -> None:
    workspace = Workspace.at(tmp_path / "workspace")
    save_preset("tiny", "Tiny", RunConfig().changed({"model.id": str(tiny_model_dir), **TINY}), workspace.presets)
    with started_app(workspace.root) as app, chromium() as browser:
        wide = Looked(browser, app.url, "recipe")
        page = wide.page
        page.locator("#q-preset input").click()
        page.get_by_role("option", name="Tiny", exact=True).click()
        expect(page.locator("#q-ready")).to_contain_text("tiny-llama")

        # Two wrong settings are reported together, each at its place, and Start waits.
        page.locator("#lora-rank input").fill("0")
        page.locator("#train-learning_rate input, #train-learning-rate input").first.fill("5")
        page.keyboard.press("Tab")
        expect(page.locator("#lora-rank-head .q-problem")).to_be_visible()
        expect(page.locator("#train-learning_rate-head .q-problem, #train-learning-rate-head .q-problem").first).to_be_visible()
        expect(page.locator("#q-start")).to_be_disabled()
        page.locator("#lora-rank input").fill("8")
        page.locator("#train-learning_rate input, #train-learning-rate input").first.fill("0.001")
        page.keyboard.press("Tab")
        expect(page.locator("#q-ready-state")).to_have_text("Ready")

        page.locator("#q-start").press("Enter")
        expect(page.get_by_role("heading", name="Tiny pirate")).to_be_visible(timeout=10_000)
        expect(page.get_by_role("button", name="Stop and save")).to_be_visible(timeout=60_000)

        # A reload and a second, small page: the same run, the same picture, still going on.
        page.reload()
        expect(page.locator("#tab-train-button")).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("heading", name="Tiny pirate")).to_be_visible()
        expect(page.locator("#q-ready-waits")).to_contain_text("Tiny pirate is training")
        small = Looked(browser, app.url, "train", NARROW)
        for shown in (page, small.page):
            expect(shown.locator("#train-charts-loss desc")).to_have_text(
                re.compile(r"Training loss went from .* at step \d{2,}"), timeout=20_000
            )
        assert len(list_runs(workspace)) == 1

        small.page.get_by_role("button", name="Stop and save").click()
        small.page.get_by_role("dialog").get_by_role("button", name="Stop and save").click()
        for shown in (page, small.page):
            expect(shown.get_by_role("button", name="Chat with it")).to_be_visible(timeout=30_000)
        run = list_runs(workspace)[0]
        assert read_run(run).status is Status.STOPPED and (run.adapter / "adapter_model.safetensors").is_file()
        small.assert_clean()

        _ask_both(page)
        _assert_side_by_side(page)

        # The conversation is the app's, not the page's: it is there after a reload and on the other page.
        page.reload()
        open_tab(page, "chat")
        expect(page.get_by_text("How do I boil an egg?").first).to_be_visible()
        open_tab(small.page, "chat")
        expect(small.page.locator(".q-bubble")).to_have_text("How do I boil an egg?")
        small.assert_clean()
        wide.assert_clean()


def _ask_both(page: Page) -> None:
    """From the finished run to a question that base and adapter have answered."""
    page.get_by_role("button", name="Chat with it").click()
    expect(page.get_by_role("radio", name="Side by side")).to_have_attribute("aria-checked", "true")
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("Longest answer").fill("24")
    page.get_by_label("Longest answer").press("Tab")
    page.get_by_label("Message").fill("How do I boil an egg?")
    page.get_by_label("Message").press("Enter")
    answers = page.locator(".q-answer .q-answer-foot")
    expect(answers).to_have_count(2, timeout=60_000)
    for side in ("Base model", "With your adapter"):
        expect(page.get_by_role("article", name=side)).to_contain_text("tokens", timeout=60_000)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)


def _assert_side_by_side(page: Page) -> None:
    """The question above, to the right; under it the answers, in columns of one width."""
    question = page.locator(".q-bubble").bounding_box()
    base, adapter = (page.get_by_role("article", name=side).bounding_box() for side in ("Base model", "With your adapter"))
    assert question and base and adapter
    assert base["y"] == adapter["y"] >= question["y"] + question["height"]
    # Its notes stand below an answer, also where a long one is scrolled to its end.
    for answer in page.locator(".q-answer").all():
        said, foot = answer.locator(".q-said").bounding_box(), answer.locator(".q-answer-foot").bounding_box()
        assert said and foot and said["y"] + said["height"] <= foot["y"] + 1
    assert abs(base["width"] - adapter["width"]) < 2 and base["width"] > 300
    assert abs(question["x"] + question["width"] - adapter["x"] - adapter["width"]) < 2
