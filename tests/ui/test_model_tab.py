"""The Model tab in Chromium: cards, folders, refusals in words, the Hub without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pages import Looked
from playwright.sync_api import expect

Visit = Callable[..., Looked]
BOX = "#model-id textarea, #model-id input"


def test_the_builtin_model_is_chosen_and_its_facts_are_right(visit: Visit) -> None:
    page = visit("model").page
    expect(page.get_by_role("radio", name="SmolLM2-135M-Instruct")).to_have_attribute("aria-checked", "true")
    expect(page.locator("#q-model-facts")).to_contain_text("134.5 M")
    expect(page.locator("#q-model-facts")).to_contain_text("30 of width 576")
    expect(page.locator("#q-models")).to_contain_text("fits")


def test_a_model_of_the_hub_is_judged_before_it_is_here(visit: Visit) -> None:
    page = visit("model").page
    page.locator("#q-hub-known").get_by_role("button", name="Qwen/Qwen2.5-32B-Instruct").click()
    expect(page.locator(BOX)).to_have_value("Qwen/Qwen2.5-32B-Instruct")
    expect(page.locator("#q-model-facts")).to_contain_text("Not on this computer yet")
    expect(page.locator("#q-ready")).to_contain_text("32.76 B")
    page.get_by_role("radio", name="SmolLM2-135M-Instruct").click()
    expect(page.locator("#q-ready-state")).to_have_text("Ready")


def test_what_four_bits_do_has_the_numbers_of_this_model(visit: Visit) -> None:
    page = visit("model").page
    page.locator("#q-quantization > button").click()
    body = page.locator("#q-quantization-body")
    expect(body).to_contain_text("79 %")
    expect(body).to_contain_text("NF4, scales compressed too")
    expect(body.get_by_role("img").first).to_have_attribute("aria-label", "Linear layers 202 MiB, Embeddings, norms 54 MiB")


def test_the_hub_offline_is_said_where_the_results_would_be(visit: Visit) -> None:
    page = visit("model").page
    page.locator("#q-hub-text textarea, #q-hub-text input").fill("qwen")
    page.locator("#q-hub-search").click()
    expect(page.locator("#q-hub-found")).to_contain_text("The Hub cannot be reached")


def test_folders_are_taken_or_refused_in_words(visit: Visit, tmp_path: Path) -> None:
    page = visit("model").page
    box = page.locator(BOX)
    box.fill(str(tmp_path / "nowhere"))
    expect(page.locator("#q-ready-problems")).to_contain_text("nowhere")
    expect(page.locator("#q-start")).to_be_disabled()
    coded = tmp_path / "coded"
    coded.mkdir()
    (coded / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}), encoding="utf-8")
    box.fill(str(coded))
    expect(page.locator("#model-id-head")).to_contain_text("code")
    box.fill("<img src=x onerror=document.title=1>")
    expect(page.locator("#q-start")).to_be_disabled()
    assert page.title() == "QLoRA UI"
    box.fill("builtin:smollm2-135m-instruct")
    expect(page.locator("#q-ready-state")).to_have_text("Ready")


def test_a_downloaded_folder_stands_among_the_cards(visit: Visit, tiny_model_dir: Path) -> None:
    page = visit("model").page
    page.locator(BOX).fill(str(tiny_model_dir))
    expect(page.locator("#q-ready")).to_contain_text("tiny-llama")
    expect(page.locator("#q-model-facts")).to_contain_text("2 of width 64")
    page.locator(BOX).fill("builtin:smollm2-135m-instruct")
    expect(page.locator("#q-ready-state")).to_have_text("Ready")
