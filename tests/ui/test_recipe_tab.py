"""The Recipe tab in Chromium: presets with undo, defaults, YAML, command, own presets, cards from the list."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest
from conftest import Running
from pages import Looked
from playwright.sync_api import Page, expect

from qlora_ui.cli import _parser
from qlora_ui.cli.config_flags import config_from
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import find_preset

Visit = Callable[..., Looked]


def pick(page: Page, title: str) -> None:
    """Choose a preset."""
    page.locator("#q-preset input").click()
    page.get_by_role("option", name=title).click()


def test_eight_options_in_plain_sight(visit: Visit) -> None:
    page = visit("recipe").page
    assert page.locator("#tab-recipe .q-control:visible").count() == 8


def test_a_preset_says_what_it_changes_and_is_taken_back_and_another_page_is_told(visit: Visit) -> None:
    page, other = visit("recipe").page, visit("recipe").page
    expect(page.locator("#lora-rank input")).to_have_value("8")
    picker = page.locator("#q-preset input")
    place = picker.bounding_box()
    pick(page, "Mistral 7B")
    expect(page.locator("#q-undo")).to_contain_text("8 → 16")
    expect(page.locator("#lora-rank input")).to_have_value("16")
    expect(page.locator("#q-ready")).to_contain_text("Mistral-7B")
    # The bar pushes away nothing that is under the pointer or has the keyboard.
    expect(page.locator("#q-undo-back")).to_be_in_viewport()
    assert picker.bounding_box() == place
    expect(picker).to_be_focused()
    expect(other.locator(".q-elsewhere")).to_contain_text("8 → 16")
    other.get_by_role("button", name="Show them here").click()
    expect(other.locator("#lora-rank input")).to_have_value("16")
    expect(other.locator("#q-preset input")).to_have_value(re.compile("Mistral 7B"))
    expect(other.locator(".q-elsewhere")).to_have_count(0)
    page.locator("#q-undo-back").click()
    # The bar goes with its buttons, and the keyboard would be on no part of the page.
    expect(page.locator("#tab-recipe-button")).to_be_focused()
    expect(page.locator("#lora-rank input")).to_have_value("8")
    expect(page.locator("#q-ready")).to_contain_text("SmolLM2-135M")
    expect(page.locator("#q-preset input")).to_have_value(re.compile("Demo"))
    # The keyboard passes through the picker and changes nothing; who picks the same preset again goes back to it.
    page.locator("#lora-rank input").fill("9")
    page.wait_for_timeout(500)
    picker.focus()
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    expect(page.locator("#lora-rank input")).to_have_value("9")
    pick(page, "Demo")
    expect(page.locator("#q-undo")).to_contain_text("9 → 8")
    # A decimal comma is one, also where the browser would drop it and make ten times as many passes.
    epochs = page.locator("#train-epochs input")
    epochs.select_text()
    page.keyboard.type("1,5")
    expect(epochs).to_have_value("1.5")


def test_advanced_counts_what_is_changed_and_goes_back_to_the_defaults(visit: Visit) -> None:
    page = visit("recipe").page
    fold = page.locator("#q-advanced-small > button")
    expect(fold).to_have_text(re.compile(r"^Advanced\W*$"))
    fold.click()
    page.locator("#quant-storage").get_by_text("bf16").click()
    expect(fold).to_contain_text("1 changed from the default")
    page.locator("#q-reset-small").click()
    # Far down the page, too, the way back is in sight.
    page.locator("#tab-recipe").evaluate("(tab) => scrollTo(0, tab.scrollHeight)")
    expect(page.locator("#q-undo-back")).to_be_in_viewport()
    expect(page.locator("#q-undo")).to_contain_text("Storage of the 4-bit weights")
    expect(fold).not_to_contain_text("changed")


def test_the_command_gives_the_same_settings_and_a_preset_is_saved(visit: Visit, app: Running) -> None:
    page = visit("recipe").page
    page.locator("#q-recipe-text > button").click()
    page.locator("#lora-rank input").fill("12")
    command = page.locator(".q-snippet pre").nth(1)
    expect(command).to_contain_text("--lora.rank 12")
    workspace = Workspace.at(app.workspace)
    words = shlex.split(command.inner_text())[2:]
    from_command = config_from(_parser("train").parse_args(words), workspace)
    page.locator("#q-preset-name textarea, #q-preset-name input").fill("twelve")
    page.locator("#q-preset-save button").click()
    expect(page.locator("#q-preset input")).to_have_value("Twelve")
    assert find_preset("twelve", workspace.presets).config == from_command
    page.locator("#lora-rank input").fill("13")
    page.locator("#q-preset-name textarea, #q-preset-name input").fill("twelve")
    page.locator("#q-preset-save [data-confirm]").click()
    expect(page.locator(".q-dialog")).to_contain_text("Replace your preset “Twelve”?")
    page.get_by_role("button", name="Keep it").last.click()
    assert find_preset("twelve", workspace.presets).config == from_command
    page.locator("#q-preset-save [data-confirm]").click()
    page.get_by_role("button", name="Replace").click()
    expect(page.locator("#q-preset-name textarea, #q-preset-name input")).to_have_value("")
    assert find_preset("twelve", workspace.presets).config.lora.rank == 13
    page.locator("#q-preset-name textarea, #q-preset-name input").fill("My look")
    page.locator("#q-preset-save button").click()
    expect(page.locator("#q-preset input")).to_have_value("My look")
    assert find_preset("my-look", workspace.presets).config.lora.rank == 13
    page.get_by_role("button", name="Delete My look").click()
    expect(page.locator(".q-dialog")).to_contain_text("from where you can put it back")
    page.get_by_role("button", name="Delete", exact=True).last.click()
    expect(page.locator("#q-preset input")).to_have_value("Defaults")
    expect(page.locator("#lora-rank input")).to_have_value("13")
    expect(page.locator("#q-preset-about [data-act]")).to_have_count(0)
    assert [path.name for path in workspace.trash.rglob("*.yaml")] == ["my-look.yaml"]


@pytest.mark.slow
def test_a_saved_preset_is_there_on_the_next_page(visit: Visit) -> None:
    first = visit("recipe").page
    first.locator("#q-recipe-text > button").click()
    first.locator("#lora-rank input").fill("24")
    expect(first.locator(".q-snippet pre").nth(1)).to_contain_text("--lora.rank 24")
    first.locator("#q-preset-name textarea, #q-preset-name input").fill("mine")
    first.locator("#q-preset-save button").click()
    expect(first.locator("#q-preset input")).to_have_value("Mine")
    # Opened while the app serves a picker that was built without it; `visit` waits for the Ready card.
    page = visit("recipe").page
    expect(page.locator("#q-preset input")).to_have_value("Mine")
    pick(page, "Demo")
    expect(page.locator("#q-preset input")).to_have_value(re.compile("Demo"))
    page.locator("#q-undo-back").click()
    expect(page.locator("#q-preset input")).to_have_value("Mine")
    pick(page, "Demo")
    expect(page.locator("#q-undo")).to_contain_text("Demo")


@pytest.mark.slow
def test_numbers_for_a_card_that_is_not_here(visit: Visit) -> None:
    page = visit("recipe").page
    expect(page.locator("#q-ready-state")).to_have_text("Ready")
    page.locator("#q-device input").click()
    page.locator("#q-device input").fill("4060, 8")
    page.get_by_role("option", name="RTX 4060, 8 GB").click()
    expect(page.locator("#q-ready")).to_contain_text("RTX 4060")
    page.locator("#q-ready summary").click()
    expect(page.locator("#q-ready .q-parts")).to_contain_text("CUDA itself")


def test_make_it_fit_changes_what_it_says_and_can_be_taken_back(visit: Visit) -> None:
    page = visit("recipe").page
    pick(page, "Llama 3.1 8B")
    expect(page.locator("#q-ready")).to_contain_text("Llama-3.1-8B")
    page.locator("#q-device input").click()
    page.locator("#q-device input").fill("4060, 8")
    page.get_by_role("option", name="RTX 4060, 8 GB").click()
    expect(page.locator("#q-ready")).to_contain_text("It would not fit RTX 4060")
    # Everything that matters is in sight: Start too.
    assert page.locator("#q-start").evaluate("e => e.getBoundingClientRect().bottom <= innerHeight")
    before = page.locator("#data-max-length input").input_value()
    page.locator("#q-make-it-fit").click()
    expect(page.locator("#q-undo")).to_contain_text("Made to fit")
    expect(page.locator("#q-ready")).not_to_contain_text("would not fit")
    expect(page.locator("#data-max-length input")).not_to_have_value(before)
    page.locator("#q-undo-back").click()
    expect(page.locator("#data-max-length input")).to_have_value(before)
    expect(page.locator("#q-ready")).to_contain_text("would not fit")
    pick(page, "Demo")
    expect(page.locator("#q-ready")).to_contain_text("SmolLM2")
