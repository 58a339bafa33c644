"""The frame in Chromium: first visit, reload, errors, small screens, light and dark, Start."""

from __future__ import annotations

import re
from collections.abc import Callable

from conftest import Running
from pages import Looked, open_tab
from playwright.sync_api import expect

Visit = Callable[..., Looked]


def test_a_first_visit_is_ready_to_start_and_torch_is_not_loaded(visit: Visit, app: Running) -> None:
    page = visit().page
    expect(page.locator("#q-ready-state")).to_have_text("Ready")
    expect(page.locator("#q-ready")).to_contain_text("SmolLM2-135M-Instruct")
    expect(page.locator("#q-ready-steps")).to_have_text("30")
    expect(page.locator("#q-start")).to_be_enabled()
    assert not app.has_torch()


def test_tabs_stand_in_the_order_of_the_work(visit: Visit) -> None:
    page = visit().page
    words = page.get_by_role("tab").all_inner_texts()
    assert words == ["Model", "Data", "Recipe", "Train", "Chat", "Evaluate", "Export", "Runs"]


def test_all_problems_stand_beside_their_controls_and_in_the_card_at_once(visit: Visit) -> None:
    page = visit("recipe").page
    page.locator("#lora-rank input").fill("-3")
    page.locator("#train-learning-rate input").fill("5")
    expect(page.locator("#q-ready-problems li")).to_have_count(2)
    expect(page.locator("#lora-rank-head")).to_contain_text("from 1 to 512")
    expect(page.locator("#train-learning-rate-head")).to_contain_text("0.1")
    expect(page.locator("#q-start")).to_be_disabled()
    expect(page.locator("#q-start")).to_have_text("2 things to change")
    # The link in the card leads to the control, from any tab.
    open_tab(page, "model")
    page.locator("#q-ready-problems button").first.click()
    expect(page.locator("#lora-rank input")).to_be_focused()
    page.locator("#lora-rank input").fill("8")
    page.locator("#train-learning-rate input").fill("0.001")
    expect(page.locator("#q-ready-state")).to_have_text("Ready")


def test_a_change_shows_what_it_costs_and_survives_a_reload(visit: Visit) -> None:
    page = visit("recipe").page
    page.locator("#lora-rank input").fill("64")
    expect(page.locator("#lora-rank-head .q-delta")).to_contain_text(re.compile(r"8 → 64: \+.*GiB.*trained numbers.*adapter"))
    page.reload()
    open_tab(page, "recipe")
    expect(page.locator("#lora-rank input")).to_have_value("64")
    other = visit("recipe").page
    expect(other.locator("#lora-rank input")).to_have_value("64")
    other.locator("#lora-rank input").fill("8")
    expect(other.locator("#lora-rank-head .q-delta")).to_have_count(0)


def test_light_and_dark_are_kept(visit: Visit) -> None:
    page = visit().page
    is_dark = "document.body.classList.contains('dark')"
    before = page.evaluate(is_dark)
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(is_dark) is not before
    page.reload()
    page.locator("#q-ready-state").wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate(is_dark) is not before


def test_on_a_narrow_screen_nothing_is_cut_and_buttons_are_large(visit: Visit) -> None:
    looked = visit(narrow=True)
    page = looked.page
    for tab in ("model", "data", "recipe"):
        open_tab(page, tab)
        page.wait_for_timeout(300)
        looked.assert_clean()
        small = page.evaluate(
            """() => [...document.querySelectorAll('#q-main button, #q-strip button')]
                .filter(b => b.offsetParent && !b.classList.contains('q-link'))
                .filter(b => b.getBoundingClientRect().height < 43.5).map(b => b.outerHTML.slice(0, 120))"""
        )
        assert small == [], tab
    expect(page.locator("#q-ready .q-facts")).to_be_hidden()
    page.get_by_role("button", name="Show what will be trained").click()
    expect(page.locator("#q-ready .q-facts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#q-ready .q-facts")).to_be_hidden()


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit("recipe").page
    for fold in page.locator(".q-fold > button:visible").all():
        fold.click()
    page.wait_for_timeout(500)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#tab-recipe input, #tab-recipe select, #tab-recipe textarea')]
            .filter(e => !(e.getAttribute('aria-label') || (e.labels && e.labels.length && e.labels[0].textContent.trim())))
            .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_card_and_button_agree_on_every_visit(visit: Visit) -> None:
    for _ in range(4):
        page = visit().page
        page.wait_for_timeout(1500)
        expect(page.locator("#q-ready-state")).to_have_text("Ready")
        expect(page.locator("#q-start")).to_have_text("Start")
