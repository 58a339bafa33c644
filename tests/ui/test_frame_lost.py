"""An answer that never reaches the page is sent again: a laptop that slept, a connection that broke."""

from __future__ import annotations

import contextlib
import json

from conftest import Running
from pages import WIDE
from playwright.sync_api import Browser, Error, Route, expect


def test_what_got_lost_on_its_way_is_drawn_by_a_later_tick(app: Running, browser: Browser) -> None:
    page = browser.new_context(viewport=WIDE).new_page()
    lost: list[int] = []

    def lose_the_strip(route: Route) -> None:
        answer = route.fetch()
        has_strip = "q-strip" in answer.text()
        if has_strip and len(lost) < 2:
            lost.append(len(answer.text()))
            data = answer.json() | {"data": [{"__type__": "update"} for _ in answer.json()["data"]]}
            route.fulfill(response=answer, body=json.dumps(data))
        else:
            route.fulfill(response=answer)

    page.route("**/run/predict*", lose_the_strip)
    page.goto(app.url)
    expect(page.locator("#q-strip")).to_contain_text("free")
    assert len(lost) == 2
    with contextlib.suppress(Error):
        page.unroute_all(behavior="ignoreErrors")
    page.context.close()
