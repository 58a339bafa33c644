"""An answer that never reaches the page is sent again: a laptop that slept, a connection that broke."""

from __future__ import annotations

import contextlib

from conftest import Running
from pages import WIDE
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
