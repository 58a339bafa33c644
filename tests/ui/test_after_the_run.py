"""After the run, in real Chromium: compare, evaluate, take it away, save the file; on a two-layer model that learned eight steps."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Running, started_app
from exported import private_parts
from pages import NARROW, WIDE, Looked, open_tab
from playwright.sync_api import Browser, Page, expect

from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import save_preset
from qlora_ui.settings.run_config import RunConfig

pytestmark = pytest.mark.browser

WORDS = ("hello", "world", "how", "are", "you", "today")
SETTINGS = {
    "data.max_length": 64,
    "train.max_steps": 8,
    "train.batch_size": 2,
    "train.accumulation": 1,
    "train.learning_rate": 5e-3,
    "lora.rank": 4,
    "eval.share": 0.2,
    "eval.every": 4,
    "eval.probes": [],
    "output.name": "Tiny pirate",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Running]:
    """An app with a preset for the two-layer model and its rows."""
    home = tmp_path_factory.mktemp("after")
    rows = home / "rows.jsonl"
    turns = [(WORDS[at % 6], f"{WORDS[(at + 1) % 6]} {WORDS[(at + 2) % 6]} {at}") for at in range(24)]
    rows.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"{asked} {said}"}, {"role": "assistant", "content": said}]}) + "\n"
            for asked, said in turns
        ),
        encoding="utf-8",
    )
    workspace = Workspace.at(home / "workspace")
    values = {"model.id": str(tiny_model_dir), "data.sources": [{"id": str(rows)}], **SETTINGS}
    save_preset("tiny", "Tiny", RunConfig().changed(values), workspace.presets)
    with started_app(workspace.root) as running:
        yield running


def test_compare_evaluate_export_save(app: Running, browser: Browser) -> None:
    looked = Looked(browser, app.url, "recipe")
    page = looked.page
    _train(page)
    page.get_by_role("button", name="Chat with it").click()

    _compare(page)
    _evaluate(page)
    _ask_both(page)

    open_tab(page, "export")
    adapter = _export(page, "adapter")
    expect(page.locator("#export-adapter")).to_contain_text(re.compile(r"the chat's answer on (\d+) of \1 prompts"))
    expect(page.locator("#export-adapter .q-command")).to_contain_text("PeftModel.from_pretrained")
    expect(page.locator("#export-adapter")).to_contain_text(re.compile(r"on the disk · .* of memory to make"))
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= adapter.keys()
    assert json.loads(adapter["adapter_config.json"])["r"] == 4
    script = _export(page, "script")
    assert {"train.py", "requirements.txt", "data/train.jsonl"} <= script.keys()
    compile(script["train.py"], "train.py", "exec")
    canaries = [str(app.workspace), str(app.workspace.parent), str(Path.home()), "/tmp/"]
    for files in (adapter, script):
        assert private_parts(files, canaries) == []

    expect(page.locator(".q-export-absent")).to_contain_text("AWQ and GPTQ are not offered")
    small = Looked(browser, app.url, "export", NARROW)
    expect(small.page.locator("#export-adapter").get_by_role("button", name="Download")).to_be_visible()
    small.assert_clean()
    looked.assert_clean()


def test_a_failing_export_is_said_in_words(app: Running, browser: Browser) -> None:
    run = list_runs(Workspace.at(app.workspace))[0]
    weights = run.adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    before = (run.exports / "adapter" / "adapter_model.safetensors").read_bytes()
    looked = Looked(browser, app.url, "export")
    card = looked.page.locator("#export-adapter")
    try:
        weights.write_bytes(whole[: len(whole) // 2])
        card.get_by_role("button", name="Make it again").click()
        trouble = looked.page.locator("#export-view [role=alert]")
        expect(trouble).to_be_visible(timeout=180_000)  # a process of its own imports torch first
        assert not re.search(r"Traceback|Error:|made a mistake", trouble.inner_text())
    finally:
        weights.write_bytes(whole)
    # The page lives, and the earlier export is as it was.
    assert (run.exports / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert not list(run.exports.glob(".making-*"))
    looked.page.locator("#export-trl-yaml").get_by_role("button", name="Make it").click()
    expect(looked.page.locator("#export-trl-yaml").get_by_role("button", name="Download")).to_be_visible()
    expect(trouble).to_have_count(0)
    looked.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True], ids=["1280", "420"])
def test_a_whole_model_is_cancelled_and_made(app: Running, browser: Browser, narrow: bool) -> None:
    if not list_runs(Workspace.at(app.workspace)):
        _train(Looked(browser, app.url, "recipe").page)  # where this test runs by itself
    run = list_runs(Workspace.at(app.workspace))[0]
    looked = Looked(browser, app.url, "export", NARROW if narrow else WIDE)
    page = looked.page
    form = "merged-original" if narrow else "merged-dequantized"
    card = page.locator(f"#export-{form}")
    card.get_by_role("button", name="Make it").click()
    page.locator(".q-work").get_by_role("button", name="Cancel").click()
    expect(page.locator(".q-work")).to_have_count(0, timeout=30_000)
    expect(card.get_by_role("button", name="Make it")).to_be_visible()
    assert not (run.exports / form).exists() and not list(run.exports.glob(".making-*"))
    files = _export(page, form)
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files.keys()
    assert private_parts(files, [str(app.workspace), str(app.workspace.parent), str(Path.home()), "/tmp/"]) == []
    expect(card).to_contain_text(re.compile(r"[✓≈] Loaded anew, it gave the chat's answer on \d+ of \d+ prompts"))
    looked.assert_clean()


def _train(page: Page) -> None:
    """Choose the preset on the Recipe tab, press Start and wait for the end."""
    page.locator("#q-preset input").click()
    page.get_by_role("option", name="Tiny", exact=True).click()
    expect(page.locator("#q-ready")).to_contain_text("tiny-llama")
    expect(page.locator("#q-start")).to_be_enabled(timeout=60_000)
    page.locator("#q-start").click()
    expect(page.get_by_role("button", name="Chat with it")).to_be_visible(timeout=60_000)


def _compare(page: Page) -> None:
    """Base and adapter side by side; a row that it has never seen starts a conversation of its own."""
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("Longest answer").fill("8")
    page.get_by_label("Longest answer").press("Tab")
    page.get_by_label("Message").fill("hello world")
    page.get_by_label("Message").press("Enter")
    expect(page.locator(".q-answer .q-answer-foot")).to_have_count(2, timeout=60_000)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Try a row it has never seen").click()
    page.get_by_role("dialog").get_by_role("button", name="Ask it").click()
    expect(page.locator(".q-bubble")).not_to_have_text("hello world")
    expect(page.locator(".q-turn")).to_have_count(1)
    expect(page.locator(".q-answer .q-answer-foot")).to_have_count(2, timeout=60_000)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)


def _evaluate(page: Page) -> None:
    """The verdict comes although the chat was on the card: it lets go by itself."""
    open_tab(page, "evaluate")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    expect(page.locator(".q-work")).to_be_visible()
    verdict = page.locator(".q-receipt-text")
    expect(verdict).to_be_visible(timeout=180_000)
    expect(verdict).to_contain_text("your adapter")
    expect(page.locator(".q-dotplot .q-dot-value")).to_have_count(5)
    expect(page.locator(".q-examples > li").first).to_be_visible()
    page.get_by_text("All numbers").click()
    expect(page.locator(".q-table").first).to_contain_text("Same choice as the chat")
    small = Looked(page.context.browser, page.url, "evaluate", NARROW)  # type: ignore[arg-type]
    small.page.locator(".q-dotplot").wait_for()
    sides = small.page.evaluate(
        "[...document.querySelectorAll('.q-dotplot *')].map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    assert all(left >= 0 and right <= 420 for left, right in sides), "the plot is cut off on a phone"
    small.assert_clean()


def _ask_both(page: Page) -> None:
    """Own questions, blindly: no name before the last vote; then the names, the tally, a file. And a text, token by token."""
    page.get_by_role("button", name="Ask both the same questions").click()
    page.wait_for_timeout(500)  # nobody types as fast as the fold draws its fields
    page.get_by_label("Questions, one a line").fill("hello world")
    page.get_by_role("button", name="Add a random one").click()
    expect(page.get_by_label("Questions, one a line")).to_have_value(re.compile("hello world\n.+"))
    page.locator("#q-comparison-longest input").fill("6")
    page.get_by_label("Hide who says what until I have voted").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    view = page.locator("#comparison-view")
    expect(view.get_by_role("button", name="None is better")).to_have_count(2, timeout=60_000)
    expect(view.locator(".q-work")).to_have_count(0, timeout=60_000)
    expect(view).not_to_contain_text("Tiny pirate")
    view.get_by_role("button", name="A is better").first.click()
    expect(view.get_by_role("button", name="✓ A is better")).to_have_count(1)
    view.get_by_role("button", name="None is better").last.click()
    expect(view).to_contain_text(re.compile("Preferred: .*Tiny pirate .*equal 1"))
    with page.expect_download(timeout=20_000) as waiting:
        view.get_by_role("button", name="Save as Markdown").click()
    assert "| hello world |" in Path(waiting.value.path()).read_text(encoding="utf-8")
    page.get_by_role("button", name="How likely is a text to each?").click()
    page.get_by_label("A text: each token").fill("hello world how are you")
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#likely-view .q-answer-head")).to_have_count(2, timeout=60_000)
    expect(page.locator("#likely-view .q-answer-head").first).to_contain_text("Base model: perplexity")


def _export(page: Page, form: str) -> dict[str, bytes]:
    """Make it, watch it, save it: the files of the ZIP that the browser got."""
    card = page.locator(f"#export-{form}")
    card.get_by_role("button", name="Make it").click()
    save = card.get_by_role("button", name="Download")
    if form == "adapter":
        expect(page.locator(".q-work")).to_contain_text("Making: Adapter")
        expect(page.locator(".q-work").get_by_role("button", name="Cancel")).to_be_visible()
    expect(save).to_be_visible(timeout=180_000)
    with page.expect_download(timeout=20_000) as waiting:
        save.click()
    assert waiting.value.suggested_filename == f"tiny-pirate-{form}.zip"
    with zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes())) as packed:
        return {info.filename: packed.read(info) for info in packed.infolist() if not info.is_dir()}
