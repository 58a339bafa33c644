"""An answer that never reaches the page is sent again (a laptop that slept, a connection that broke), one that comes too late does not
stay. A page says when the app is gone."""

from __future__ import annotations

import contextlib

from conftest import Running
from pages import NARROW, WIDE, open_tab
from playwright.sync_api import APIResponse, Browser, Error, Route, expect


def test_what_got_lost_on_its_way_is_drawn_by_a_later_beat(app: Running, browser: Browser) -> None:
    page = browser.new_context(viewport=WIDE).new_page()
    lost: list[int] = []

    def lose_the_strip(route: Route) -> None:
        answer = route.fetch()
        if "q-strip" in answer.text() and len(lost) < 2:
            lost.append(len(answer.text()))
            route.abort()
        else:
            route.fulfill(response=answer)

    page.route("**/component_server/", lose_the_strip)
    page.goto(app.url)
    expect(page.locator("#q-strip")).to_contain_text("free")
    assert len(lost) == 2
    with contextlib.suppress(Error):
        page.unroute_all(behavior="ignoreErrors")
    page.context.close()


def test_an_answer_that_comes_after_a_later_one_does_not_stay(app: Running, browser: Browser) -> None:
    page = browser.new_context(viewport=WIDE).new_page()
    page.goto(app.url)
    open_tab(page, "recipe")
    card, rank = page.locator("#q-ready"), page.locator("#lora-rank input")
    expect(card).to_contain_text("2.4 M numbers")
    held: list[tuple[Route, APIResponse]] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    page.route("**/gradio_api/run/predict*", hold_the_first)
    page.evaluate("qLive.tell({'q-news': {value: 'something was found out'}})")
    page.wait_for_timeout(500)
    rank.fill("64")
    rank.press("Tab")
    expect(card).to_contain_text("19.5 M numbers")
    (route, answer) = held[0]
    route.fulfill(response=answer)
    page.wait_for_timeout(1500)
    expect(card).to_contain_text("19.5 M numbers", timeout=10_000)
    with contextlib.suppress(Error):
        page.unroute_all(behavior="ignoreErrors")
    page.context.close()


def test_a_page_says_that_the_app_does_not_answer_until_it_does(app: Running, browser: Browser) -> None:
    page = browser.new_context(viewport=NARROW).new_page()
    page.goto(app.url)
    expect(page.locator("#q-strip")).to_contain_text("free")
    page.context.set_offline(True)
    gone = page.get_by_role("alert").filter(has_text="The app does not answer")
    expect(gone).to_be_in_viewport()
    expect(page.locator(".q-strip-memory")).to_have_css("opacity", "0.55")
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1], widths
    page.context.set_offline(False)
    expect(gone).to_have_count(0)
    expect(page.locator(".q-strip-memory")).to_have_css("opacity", "1")
    page.context.close()
