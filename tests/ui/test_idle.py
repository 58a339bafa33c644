"""A page that nobody touches costs its machine next to nothing, and still misses nothing."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import Looked, open_tab, served_page
from playwright.sync_api import Browser, Error, Page, Route, expect

from qlora_ui.runs.events import StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.launch import Served
from tests.journals import write_run

pytestmark = pytest.mark.browser

REST_MS = 5_000
"""What is watched while nothing happens."""
SOON_MS = 3_000
"""A beat comes each second; these cores are slow."""
ANSWERS = "**/component_server/"
COUNT_FRAMES = """
window.framesAsked = 0;
const inNextFrame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => { window.framesAsked += 1; return inNextFrame(draw); };
"""
MOVING = "document.getAnimations().filter((one) => one.playState === 'running' && one.timeline instanceof DocumentTimeline).length"
"""What runs by the clock; what follows a scroll bar draws nothing while nobody scrolls."""
LOOK_AWAY = """(isHidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_page(Workspace.at(Path(tmp_path_factory.mktemp("idle")))) as page:
        page.service.launcher.hold(True)
        yield page


@pytest.fixture(scope="module")
def run(served: Served) -> RunDir:
    """A run in the middle of its training, which takes a step when a test says so."""
    return write_run(served.service.workspace, values={"output.name": "Pirate"}, end="live", done=57)


def learn(run: RunDir, step: int) -> None:
    JournalWriter(run.journal_path).write(StepLogged(step=step, loss=0.5, learning_rate=1e-4, step_s=1.0, tokens_per_s=1000))


def asked_of(page: Page) -> Counter[str]:
    """Counts from now on what a page asks the app, by the last word of the address."""
    asked: Counter[str] = Counter()
    page.on("request", lambda request: asked.update([request.url.partition("?")[0].rstrip("/").rpartition("/")[2]]))
    return asked


@pytest.mark.slow
def test_at_rest_a_page_asks_once_a_second_and_neither_gradio_nor_the_screen_has_work(browser: Browser, served: Served) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.add_init_script(COUNT_FRAMES)
    page.goto(served.url)
    page.locator("#q-ready-state").wait_for(timeout=30_000)
    for tab in ("train", "runs", "model"):
        open_tab(page, tab)
    page.wait_for_timeout(REST_MS)
    asked, frames = asked_of(page), page.evaluate("window.framesAsked")
    page.wait_for_timeout(REST_MS)
    assert set(asked) <= {"component_server"}, asked
    assert 2 <= asked["component_server"] <= 8, asked
    assert page.evaluate("window.framesAsked") - frames <= 5
    assert page.evaluate(MOVING) == 0
    context.close()


@pytest.mark.slow
def test_beside_a_run_gradio_has_no_work_either(browser: Browser, served: Served, run: RunDir) -> None:
    looked = Looked(browser, served.url, "train")
    expect(looked.page.locator("#train-head")).to_contain_text("step 57 of 120", timeout=15_000)
    looked.page.wait_for_timeout(REST_MS)
    asked = asked_of(looked.page)
    learn(run, 58)
    expect(looked.page.locator("#train-head")).to_contain_text("step 58 of 120", timeout=SOON_MS)
    expect(looked.page.locator("#train-charts-loss desc")).to_have_text(re.compile("at step 58"), timeout=SOON_MS)
    assert set(asked) == {"component_server"}, asked
    # What lives is seen to live, without an animation.
    dot = "getComputedStyle(document.getElementById('q-run-chip'), '::before').opacity"
    assert (
        len({looked.page.wait_for_function(f"() => {dot} === '{value}' && {dot}", timeout=SOON_MS).json_value() for value in ("1", "0.35")})
        == 2
    )
    assert looked.page.evaluate(MOVING) == 0
    looked.assert_clean()
    looked.page.context.close()


def test_what_one_page_does_another_shows_soon(browser: Browser, served: Served, run: RunDir) -> None:
    first, second = Looked(browser, served.url, "runs"), Looked(browser, served.url, "runs")
    for looked in (first, second):
        expect(looked.page.locator("#runs-table")).to_contain_text("Pirate", timeout=15_000)
    first.page.locator("#runs-table details[data-menu] summary").first.click()
    first.page.get_by_role("button", name="Rename").first.click()
    first.page.get_by_role("dialog").get_by_role("textbox").fill("Corsair")
    first.page.get_by_role("dialog").get_by_role("button", name=re.compile("Rename|Save|OK")).click()
    expect(second.page.locator("#runs-table")).to_contain_text("Corsair", timeout=SOON_MS)
    # What this page looks for is its own business.
    first.page.locator("#runs-find textarea, #runs-find input").fill("nothing of that name")
    expect(first.page.locator("#runs-table")).not_to_contain_text("Corsair", timeout=SOON_MS)
    second.page.wait_for_timeout(SOON_MS)
    expect(first.page.locator("#runs-table")).not_to_contain_text("Corsair")
    expect(second.page.locator("#runs-table")).to_contain_text("Corsair")
    for looked in (first, second):
        looked.assert_clean()
        looked.page.context.close()


@pytest.mark.slow
def test_a_page_out_of_sight_asks_rarely_and_catches_up_when_it_is_looked_at(browser: Browser, served: Served, run: RunDir) -> None:
    looked = Looked(browser, served.url, "train")
    expect(looked.page.locator("#train-head")).to_contain_text("of 120", timeout=15_000)
    looked.page.evaluate(LOOK_AWAY, True)
    looked.page.wait_for_timeout(1500)
    asked = asked_of(looked.page)
    learn(run, 59)
    looked.page.wait_for_timeout(REST_MS)
    assert sum(asked.values()) <= 1, asked
    looked.page.evaluate(LOOK_AWAY, False)
    expect(looked.page.locator("#train-head")).to_contain_text("step 59 of 120", timeout=SOON_MS)
    expect(looked.page.locator("#train-charts-loss desc")).to_have_text(re.compile("at step 59"), timeout=SOON_MS)
    looked.assert_clean()
    looked.page.context.close()


def at_the_run(browser: Browser, served: Served) -> Page:
    """A page on the Train tab that shows the run."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(served.url)
    open_tab(page, "train")
    expect(page.locator("#train-head")).to_contain_text("of 120", timeout=15_000)
    return page


@pytest.mark.slow
def test_an_answer_that_is_lost_loses_no_change(browser: Browser, served: Served, run: RunDir) -> None:
    page = at_the_run(browser, served)
    lost: list[str] = []

    def lose(route: Route) -> None:
        answer = route.fetch()
        if "step 60 of 120" in answer.text() and len(lost) < 2:
            lost.append(answer.text())
            route.abort()
        else:
            route.fulfill(response=answer)

    page.route(ANSWERS, lose)
    learn(run, 60)
    expect(page.locator("#train-head")).to_contain_text("step 60 of 120", timeout=4 * SOON_MS)
    expect(page.locator("#train-charts-loss desc")).to_have_text(re.compile("at step 60"), timeout=SOON_MS)
    assert len(lost) == 2
    with contextlib.suppress(Error):
        page.unroute_all(behavior="ignoreErrors")
    page.context.close()


@pytest.mark.slow
def test_an_answer_that_never_ends_is_given_up(browser: Browser, served: Served, run: RunDir) -> None:
    page = at_the_run(browser, served)
    held: list[Route] = []
    page.route(ANSWERS, lambda route: held.append(route) if not held else route.continue_())
    learn(run, 61)
    expect(page.locator("#train-head")).to_contain_text("step 61 of 120", timeout=10_000 + 2 * SOON_MS)
    assert len(held) == 1
    with contextlib.suppress(Error):
        page.unroute_all(behavior="ignoreErrors")
    page.context.close()


def test_what_is_drawn_anew_keeps_focus_and_folds(browser: Browser, served: Served, run: RunDir) -> None:
    looked = Looked(browser, served.url, "train")
    button = looked.page.get_by_role("button", name="Stop and save")
    button.focus()
    fold = looked.page.locator("#train-timeline details[data-key]").first
    if fold.count():
        fold.locator("summary").first.click()
        button.focus()
    is_open = fold.evaluate("(one) => one.open") if fold.count() else None
    learn(run, 62)
    expect(looked.page.locator("#train-head")).to_contain_text("step 62 of 120", timeout=SOON_MS)
    expect(button).to_be_focused()
    if is_open is not None:
        assert fold.evaluate("(one) => one.open") == is_open
    looked.assert_clean()
    looked.page.context.close()
