"""The frame in Chromium: first visit, reload, errors, small screens, light and dark, Start."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Running
from pages import Looked, open_tab
from playwright.sync_api import Page, expect

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


def test_no_tab_moves_under_the_hand(visit: Visit) -> None:
    """Neither when its mark changes nor, where scroll bars take room, when the page becomes too long for the screen."""
    page = visit().page
    places = "[...document.querySelectorAll('#q-tabs [role=tab]')].map((tab) => Math.round(tab.getBoundingClientRect().x))"
    before = page.evaluate(places)
    page.evaluate("document.querySelector('.q-step[data-step=data]').dataset.state = 'problem'")
    assert page.evaluate(places) == before
    page.evaluate("document.querySelector('.q-step[data-step=data]').dataset.state = 'open'")
    assert page.evaluate(places) == before
    assert page.evaluate("getComputedStyle(document.documentElement).scrollbarGutter") == "stable"


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
    # Back and forward go through the tabs, and not out of the app.
    for tab in ("data", "chat"):
        open_tab(page, tab)
        expect(page.locator(f"#tab-{tab}-button")).to_have_attribute("aria-selected", "true")
    for go, tab in ((page.go_back, "data"), (page.go_back, "recipe"), (page.go_forward, "data")):
        go()
        expect(page.locator(f"#tab-{tab}-button")).to_have_attribute("aria-selected", "true")
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
    # The page's scroll bar and the room that is kept for it are the root's.
    root = page.evaluate("(({colorScheme, backgroundColor}) => [colorScheme, backgroundColor])(getComputedStyle(document.documentElement))")
    assert root == (["light", "rgb(246, 247, 248)"] if before else ["dark", "rgb(18, 20, 23)"])
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
    expect(page.locator("#q-check")).to_be_hidden()
    page.get_by_role("button", name="Show what will be trained").click()
    expect(page.locator("#q-ready .q-facts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#q-ready .q-facts")).to_be_hidden()


def test_on_a_narrow_screen_start_is_in_sight_where_the_words_send_to_it(visit: Visit) -> None:
    page = visit("train", narrow=True).page
    expect(page.locator("#train-head")).to_contain_text("Press Start under “Next run”")
    expect(page.locator("#q-start")).to_be_in_viewport()
    open_tab(page, "chat")
    expect(page.locator("#q-start")).to_be_hidden()
    # Nor fields there that would say “Train one first”.
    open_tab(page, "evaluate")
    expect(page.get_by_text("Nothing to evaluate yet")).to_be_visible()
    expect(page.locator("#q-comparison")).to_be_hidden()
    # A window of 1280 × 800 at 200 %: the strip, and Start in a line of its own, left half of it to the page.
    page.set_viewport_size({"width": 640, "height": 400})
    open_tab(page, "recipe")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_in_viewport()
    height = page.locator("#q-side").evaluate("(bar) => bar.offsetHeight")
    assert height < 72, height
    page.evaluate("scrollTo(0, 400)")
    expect(page.locator("#q-strip")).not_to_be_in_viewport()


def test_copy_works_where_the_browser_keeps_the_clipboard_away(visit: Visit) -> None:
    # A page of another computer without TLS has no navigator.clipboard.
    page = visit("recipe").page
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.locator("#q-recipe-text > button").click()
    button = page.locator("#q-recipe-yaml .q-copy").last
    copied = button.get_attribute("data-copy")
    button.click()
    expect(button).to_have_text("Copied")
    box = page.locator("#q-preset-name").locator("input, textarea")
    box.focus()
    page.keyboard.press("Control+v")
    expect(box).to_have_value(str(copied))


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


@pytest.mark.slow
def test_card_and_button_agree_on_every_visit(visit: Visit) -> None:
    for _ in range(4):
        page = visit().page
        page.wait_for_timeout(1500)
        expect(page.locator("#q-ready-state")).to_have_text("Ready")
        expect(page.locator("#q-start")).to_have_text("Start")


FOCUSED = """() => {
    const at = document.activeElement;
    const boxes = [at, at.closest('label'), at.closest('.q-select, .q-chips, #runs-find')].filter(Boolean);
    const inner = [...boxes.at(-1).querySelectorAll('div:focus-within')];
    const shows = (box) => {
        const look = getComputedStyle(box);
        return (look.outlineStyle !== 'none' && parseFloat(look.outlineWidth) > 0) || look.boxShadow !== 'none';
    };
    return {
        name: at.id || at.getAttribute('aria-label') || at.textContent.trim().slice(0, 40),
        page: at === document.body,
        seen: [...boxes, ...inner].some(shows),
    };
}"""


def test_model_data_recipe_start_by_keyboard_alone(visit: Visit) -> None:
    page = visit().page
    walked = _walk(page, "tab-data-button")
    page.keyboard.press("Enter")
    expect(page.locator("#q-upload")).to_be_visible()
    walked += _walk(page, "tab-recipe-button")
    page.keyboard.press("Enter")
    expect(page.locator("#lora-rank input")).to_be_visible()
    walked += _walk(page, "Adapter size")
    page.keyboard.press("Control+a")
    page.keyboard.type("16")
    expect(page.locator("#lora-rank-head .q-delta")).to_contain_text("8 → 16")
    walked += _walk(page, "q-start")
    expect(page.locator("#q-start")).to_be_enabled()
    # No list of a control that was passed by stands open.
    page.wait_for_timeout(300)
    expect(page.get_by_role("listbox")).to_have_count(0)
    assert [step["name"] for step in walked if not step["seen"]] == []
    page.locator("#lora-rank input").fill("8")
    expect(page.locator("#lora-rank-head .q-delta")).to_have_count(0)


def _walk(page: Page, goal: str) -> list[dict[str, Any]]:
    """Press Tab until the control of that id or label has the focus; every step stays on the page."""
    walked: list[dict[str, Any]] = []
    while len(walked) < 60:
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at["page"] and walked:
            raise AssertionError(f"the focus was lost after {walked[-1]['name']}")
        walked.append(at)
        if at["name"] == goal:
            return walked
    raise AssertionError(f"{goal} is not reached: {[step['name'] for step in walked]}")


OVERLAPS = """() => {
    const start = Math.min(...["q-start", "q-strip"].map((id) => Number(getComputedStyle(document.getElementById(id)).zIndex)));
    const labels = [...document.querySelectorAll("#q-main label span, #q-main [data-testid=block-info]")];
    const above = labels.filter((label) => Number(getComputedStyle(label).zIndex) >= start).map((label) => label.textContent);
    const fields = [...document.querySelectorAll(".q-select input[role=combobox]")].filter((field) => field.checkVisibility());
    const under = fields.filter((field) => field.getBoundingClientRect().right - parseFloat(getComputedStyle(field).paddingRight)
        > field.parentElement.querySelector(".icon-wrap").getBoundingClientRect().left).map((field) => field.value);
    return {fields: fields.length, labels: labels.length, above, under};
}"""


def test_no_label_stands_above_start_or_the_strip_and_no_text_under_an_arrow(visit: Visit) -> None:
    found = visit("recipe").page.evaluate(OVERLAPS)
    assert found["fields"] and found["labels"]
    assert (found["above"], found["under"]) == ([], [])


def test_what_passes_by_is_headed_by_what_happened(visit: Visit) -> None:
    page = visit("recipe").page
    page.locator("#q-recipe-text > button").click()
    page.locator("#q-preset-name").locator("input, textarea").fill("Demo")
    page.locator("#q-preset-save button").click()
    message = page.get_by_test_id("toast-body")
    expect(message).to_contain_text("“demo” is a preset that comes with the app")
    expect(message).not_to_contain_text("Error")


def test_a_first_visit_says_what_start_does(visit: Visit) -> None:
    page = visit().page
    expect(page.locator("#q-ready-waits")).to_contain_text("A first try is set up")
    box = page.locator("#q-start").bounding_box()
    assert box and box["y"] + box["height"] <= 800
    covered = page.evaluate("document.querySelector('#q-side').scrollHeight - document.querySelector('#q-side').clientHeight")
    assert covered <= 0


SMALL = """() => [...document.querySelectorAll("button, summary, select, [role=button], .q-segments label, .q-switch label")]
    .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 44)
    .map((one) => `${one.textContent || one.ariaLabel}: ${one.getBoundingClientRect().height}`)"""


@pytest.mark.slow
def test_a_thumb_meets_what_it_aims_at(visit: Visit) -> None:
    page = visit("model", narrow=True).page
    for tab, stands in (("model", "#model-id"), ("data", ".q-source"), ("recipe", "#lora-targets"), ("chat", ".q-switch3")):
        open_tab(page, tab)
        page.locator(stands).first.wait_for()
        assert page.evaluate(SMALL) == [], tab
