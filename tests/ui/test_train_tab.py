"""The Train tab in Chromium, over runs that were written event by event."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import NARROW, Looked, served_page
from playwright.sync_api import Browser, expect

from qlora_ui.runs.events import Finished, Paused, StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import Request
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.launch import Served
from tests.journals import write_run

pytestmark = pytest.mark.browser

LONG_TASK_MS = 150
DRAW_MS = 150
"""All charts of the tab, once."""
MANY_POINTS = 10_000


WATCH = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((e) => e.duration))).observe({type: "longtask"});
  window.drawn = [];
  const request = window.requestAnimationFrame;
  window.requestAnimationFrame = (callback) => request((time) => {
    const from = performance.now();
    callback(time);
    window.drawn.push(performance.now() - from);
  });
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_page(Workspace.at(Path(tmp_path_factory.mktemp("train")))) as page:
        page.service.launcher.hold(True)
        yield page


def test_a_run_draws_itself_and_every_page_shows_the_same(browser: Browser, served: Served) -> None:
    run = write_run(served.service.workspace, values={"output.name": "Pirate"}, end="live", done=57)
    first = Looked(browser, served.url, "train")
    expect(first.page.get_by_role("heading", name="Pirate")).to_be_visible()
    loss = first.page.locator("#train-charts-loss")
    expect(loss.locator(".q-plot path.q-line-line")).to_have_count(1)
    expect(loss.locator("desc")).to_have_text(re.compile(r"from .* at step 1 to .* at step 57\. .* best at step 48"))
    expect(first.page.locator("#train-charts-memory .q-plot .q-rule")).to_have_count(1)
    second = Looked(browser, served.url, "train", NARROW)
    expect(second.page.locator("#train-charts-loss desc")).to_have_text(re.compile("at step 57"))

    JournalWriter(run.journal_path).write(StepLogged(step=58, loss=0.5, learning_rate=1e-4, step_s=1.0, tokens_per_s=1000))
    for looked in (first, second):
        expect(looked.page.locator("#train-charts-loss desc")).to_have_text(re.compile(r"to 0\.5 at step 58"), timeout=5000)
        expect(looked.page.locator("#train-head")).to_contain_text("step 58 of 120")
    first.page.reload()
    first.page.locator("#tab-train-button").click()
    expect(first.page.locator("#train-charts-loss desc")).to_have_text(re.compile("at step 58"))
    second.assert_clean()
    first.assert_clean()


def test_values_are_read_with_pointer_and_keyboard(browser: Browser, served: Served) -> None:
    looked = Looked(browser, served.url, "train")
    cover = looked.page.get_by_role("slider", name=re.compile("Loss: read values"))
    cover.hover(position={"x": 200, "y": 60})
    tip = looked.page.locator("#train-charts-loss .q-tip")
    expect(tip).to_contain_text(re.compile(r"Step \d+.*Training"))
    cover.focus()
    cover.press("Home")
    cover.press("ArrowRight")
    expect(cover).to_have_attribute("aria-valuetext", re.compile(r"Step 2: Training [\d.]+"))
    looked.page.get_by_label("Log scale").check()
    looked.page.locator("#train-charts select").select_option("50")
    expect(tip).to_contain_text("Step")
    looked.assert_clean()


def test_stop_asks_first_and_is_echoed(browser: Browser, served: Served) -> None:
    run = next(run for run in list_runs(served.service.workspace) if run.owner_is_alive())
    looked = Looked(browser, served.url, "train")
    looked.page.get_by_role("button", name="Stop and save").click()
    dialog = looked.page.get_by_role("dialog")
    expect(dialog).to_contain_text("What it has learned is saved")
    dialog.get_by_role("button", name="Go on training").click()
    assert run.pending_requests() == []
    looked.page.get_by_role("button", name="Stop and save").click()
    dialog.get_by_role("button", name="Stop and save").click()
    expect(looked.page.locator("#train-head")).to_contain_text("Stopping after this step; what was learned is saved.")
    assert run.pending_requests() == [Request.STOP]
    looked.assert_clean()


@pytest.mark.slow
def test_a_stale_page_is_told_what_changed(browser: Browser, served: Served) -> None:
    looked = Looked(browser, served.url, "train")
    for _ in range(4):  # now and then the page's timer is faster than the click
        run = write_run(served.service.workspace, values={"output.name": "Stale"}, end="live", done=20)
        looked.page.locator("#tab-runs-button").click()
        looked.page.locator(f'#runs-table [data-act=open][data-id="{run.id}"]').click()
        button = looked.page.get_by_role("button", name="Checkpoint now")
        button.wait_for()
        JournalWriter(run.journal_path).write(Finished(step=20, adapter="adapter", final_loss=0.5))
        looked.page.evaluate("document.querySelector('#train-head [data-act=save_now]')?.click()")
        with contextlib.suppress(AssertionError):
            expect(looked.page.get_by_text(re.compile("is not running any more; it is done"))).to_be_visible(timeout=4000)
            break
    else:
        raise AssertionError("a stale click was not answered")
    expect(looked.page.get_by_role("button", name="Chat with it")).to_be_visible(timeout=5000)


def test_a_failure_offers_its_remedy(browser: Browser, served: Served) -> None:
    write_run(served.service.workspace, values={"output.name": "Too large"}, end="failed", done=41)
    looked = Looked(browser, served.url, "runs")
    looked.page.get_by_role("button", name="Too large").first.click()
    alert = looked.page.locator("#train-head").get_by_role("alert")
    expect(alert).to_contain_text("memory was full")
    expect(alert.get_by_text("Traceback")).not_to_be_visible()
    alert.get_by_role("button", name=re.compile("Apply and start again: Two conversations")).click()
    expect(looked.page.locator("#train-head")).to_contain_text("Waits for its turn")
    started = served.service.launcher.queue()[-1].config()
    assert (started.train.batch_size, started.train.accumulation) == (2, 8)
    served.service.launcher.cancel(served.service.launcher.queue()[-1])
    looked.assert_clean()


def test_the_keyboard_stays_in_its_place_when_the_last_waiting_run_is_removed(browser: Browser, served: Served) -> None:
    served.service.launcher.start(RunConfig().changed({"output.name": "Waiting"}))
    looked = Looked(browser, served.url, "train")
    looked.page.get_by_role("button", name="Take Waiting out of the queue").press("Enter")
    expect(looked.page.locator(".q-queue")).to_have_count(0)
    assert looked.page.evaluate("document.getElementById('train-head').contains(document.activeElement)")
    looked.page.keyboard.press("Tab")
    assert looked.page.evaluate("document.activeElement.closest('#train-head')?.id") == "train-head"
    looked.assert_clean()
    looked.page.context.close()


def test_the_keyboard_stays_at_a_button_that_was_pressed_and_on_none_that_took_its_place(browser: Browser, served: Served) -> None:
    run = write_run(served.service.workspace, values={"output.name": "Pressed"}, end="live", done=57)
    looked = Looked(browser, served.url, "train")
    page = looked.page
    page.get_by_role("button", name="Checkpoint now").press("Enter")
    # Its words while it waits may be over before they are looked for; the answer stays, drawn with the button anew.
    expect(page.get_by_text("Saving a checkpoint after this step")).to_be_visible()
    expect(page.get_by_role("button", name="Checkpoint now")).to_be_focused()
    page.get_by_role("button", name="Stop and save").focus()
    JournalWriter(run.journal_path).write(Paused(step=57))
    expect(page.get_by_role("button", name="Continue from")).to_be_visible()
    assert page.evaluate("document.activeElement.closest('#train-head') && document.activeElement.tagName") == "DIV"
    looked.assert_clean()
    page.context.close()


@pytest.mark.slow
def test_ten_thousand_points_without_a_long_task(browser: Browser, served: Served) -> None:
    run = write_run(served.service.workspace, num_steps=2 * MANY_POINTS, done=MANY_POINTS, end="live", step_s=0.05)
    journal = JournalWriter(run.journal_path)
    looked = Looked(browser, served.url, "runs")
    looked.page.locator(f'#runs-table [data-act=open][data-id="{run.id}"]').click()
    expect(looked.page.locator("#train-charts-loss desc")).to_have_text(re.compile("at step 10000"), timeout=20_000)
    looked.page.evaluate(WATCH)
    for step in range(MANY_POINTS + 1, MANY_POINTS + 7):
        journal.write(StepLogged(step=step, loss=0.5, learning_rate=1e-4, grad_norm=0.5, step_s=0.05, tokens_per_s=1000))
        expect(looked.page.locator("#train-charts-loss desc")).to_have_text(re.compile(f"at step {step}\\."), timeout=10_000)
    drawn = looked.page.evaluate("window.drawn")
    assert len(drawn) >= 6 and sorted(drawn)[len(drawn) // 2] <= DRAW_MS, drawn
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        # Long tasks hold all that the page does, and on a busy machine the waiting too.
        tasks = looked.page.evaluate("window.longTasks")
        assert max(tasks, default=0) <= LONG_TASK_MS, tasks
    looked.assert_clean()
