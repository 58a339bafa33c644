"""An answer that never reaches the page is sent again: a laptop that slept, a connection that broke. A page says when the app is gone."""

from __future__ import annotations

import contextlib

from conftest import Running
from pages import NARROW, WIDE
from playwright.sync_api import Browser, Error, Route, expect


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
