"""The Runs tab in Chromium: find, compare, rename, delete, start anew; fast with thousands."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import NARROW, WIDE, Looked, served_page
from playwright.sync_api import Browser, ViewportSize, expect

from qlora_ui.runs.deleted import deleted
from qlora_ui.runs.read import RunReaders
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import delete_preset, save_preset
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.launch import Served
from qlora_ui.ui.run_lists import RunLists
from tests.journals import write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    workspace = Workspace.at(tmp_path_factory.mktemp("runs"))
    for rank, name in ((8, "Pirate small"), (32, "Pirate large"), (16, "Tickets")):
        write_run(workspace, values={"lora.rank": rank, "output.name": name}, done=40, num_steps=40, seed=rank)
    with served_page(workspace) as page:
        yield page


def row(looked: Looked, name: str):  # type: ignore[no-untyped-def]
    return looked.page.locator("#runs-table tbody tr", has_text=name)


@pytest.mark.parametrize("width", [pytest.param(WIDE, id="wide"), pytest.param(NARROW, id="narrow", marks=pytest.mark.slow)])
def test_find_compare_and_see_what_differs(browser: Browser, served: Served, width: ViewportSize) -> None:
    looked = Looked(browser, served.url, "runs", width)
    page = looked.page
    expect(page.locator("#runs-table tbody tr")).to_have_count(3)
    page.get_by_placeholder("Find by name").fill("pirate")
    expect(page.locator("#runs-table tbody tr")).to_have_count(2)
    top = page.locator(".q-runs").bounding_box()
    # Both within a moment: before the answer to the first the second is on its way.
    page.get_by_label(re.compile("Compare Pirate")).evaluate_all("both => both.reverse().forEach((one) => one.click())")
    table = page.locator("#runs-compare")
    expect(table).to_contain_text("Adapter size")
    expect(table).not_to_contain_text("Weight decay")
    expect(page.locator("#runs-charts .q-plot .q-run1.q-line-line")).to_have_count(1)
    expect(page.locator("#runs-charts desc")).to_have_text(re.compile("Pirate (small|large): .*Pirate (small|large): "))
    assert page.locator(".q-runs").bounding_box() == top, "the list moved under the pointer"
    # Of a list longer than the screen it stands far from the row that was ticked.
    page.get_by_role("button", name="Show them side by side").click()
    expect(table.get_by_role("heading", name="Side by side")).to_be_in_viewport()
    page.get_by_label("Differences only").uncheck()
    expect(table).to_contain_text("Weight decay")
    page.get_by_role("button", name="Clear the choice").click()
    expect(table).to_be_hidden()
    looked.assert_clean()


def test_a_run_that_takes_long_to_read_is_said_to_be_opened(browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, read = Looked(browser, served.url, "train"), RunReaders.view
    page, head = looked.page, looked.page.locator("#train-head")
    shown = head.locator("h1").inner_text()
    page.get_by_role("tab", name="Runs").click()
    other = next(name for name in ("Pirate small", "Pirate large") if name != shown)
    row(looked, other).wait_for()
    monkeypatch.setattr(RunReaders, "view", lambda *given: (time.sleep(1.5), read(*given))[1])
    row(looked, other).get_by_role("button", name=other, exact=True).click()
    expect(page.locator("#train-view")).to_have_attribute("aria-busy", "true")
    assert head.locator("h1").inner_text() == shown
    monkeypatch.undo()
    expect(head.locator("h1")).to_have_text(other)
    expect(page.locator("#train-view")).to_have_attribute("aria-busy", "false")
    looked.assert_clean()


def test_rename_settings_and_delete_to_trash(browser: Browser, served: Served) -> None:
    looked = Looked(browser, served.url, "runs")
    page = looked.page
    page.get_by_label("More for Tickets").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("Support <b>tickets</b>")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(row(looked, "Support <b>tickets</b>")).to_have_count(1)
    expect(page.get_by_label("More for Support")).to_be_focused()
    page.get_by_label("More for Support").click()
    page.get_by_role("button", name="Settings and log").click()
    details = page.locator("#runs-details")
    expect(details).to_contain_text("name: Tickets")
    expect(details.get_by_role("heading", name="Support")).to_be_in_viewport()
    details.get_by_role("button", name="Close").click()
    expect(page.get_by_label("More for Support")).to_be_focused()
    page.get_by_label("More for Support").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    expect(page.get_by_label("More for Support")).to_be_focused()
    assert len(list_runs(served.service.workspace)) == 3
    page.get_by_label("More for Support").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#runs-table tbody tr")).to_have_count(2)
    assert page.evaluate("document.activeElement.closest('#runs-table') !== null")
    assert len(deleted(served.service.workspace)) == 1
    trash = page.locator("#runs-trash")
    expect(trash).to_contain_text("1 deleted item, ")
    # What other tabs deleted lies there as well, and is back on them at once.
    save_preset("my-look", "My Look", RunConfig(), served.service.workspace.presets)
    delete_preset("my-look", served.service.workspace.presets, served.service.workspace.trash)
    trash.get_by_role("button", name="Put it back: My Look").click()
    expect(page.get_by_text("“My Look” is put back")).to_be_visible()
    expect(trash).to_contain_text("1 deleted item, ")
    page.get_by_role("tab", name="Recipe").click()
    page.locator("#q-preset input").click()
    expect(page.get_by_role("option", name="My Look")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Runs").click()
    page.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove for good").click()
    expect(trash).to_be_empty()
    assert list(served.service.workspace.trash.iterdir()) == []
    looked.assert_clean()


def test_the_keyboard_follows_a_run_that_moves_down(browser: Browser, served: Served) -> None:
    looked = Looked(browser, served.url, "runs")
    more = looked.page.get_by_label("More for Pirate large")
    more.focus()
    write_run(served.service.workspace, values={"output.name": "Newer"}, done=40, num_steps=40)
    expect(row(looked, "Newer")).to_be_visible()
    expect(more).to_be_focused()
    looked.assert_clean()
    looked.page.context.close()


def test_a_new_run_starts_from_an_old_ones_settings(browser: Browser, served: Served) -> None:
    looked = Looked(browser, served.url, "runs")
    looked.page.get_by_label("More for Pirate large").click()
    looked.page.get_by_role("button", name="New run from this one").click()
    expect(looked.page.locator("#tab-recipe-button")).to_have_attribute("aria-selected", "true")
    expect(looked.page.locator("#lora-rank input")).to_have_value("32")
    looked.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDE, NARROW], ids=["wide", "narrow"])
def test_long_names_and_paths_stay_in_their_cards(browser: Browser, served: Served, width: ViewportSize) -> None:
    names = ["y" * 60, "<b>x</b> " + "x" * 120]
    for rank, name in enumerate(names):
        source = f"{served.service.workspace.datasets}/417ad13e/{'n' * 70}.jsonl"
        values = {"output.name": name, "data.sources": [source], "lora.rank": 8 + rank, "data.max_length": 20_096, "train.epochs": 7}
        write_run(served.service.workspace, values=values, done=20, num_steps=20, seed=rank)
    looked = Looked(browser, served.url, "runs", width)
    page = looked.page
    for name in names:
        page.get_by_label(f"Compare {name}").first.check()
    expect(page.locator("#runs-charts .q-legend-item").last).to_be_visible()
    for inner, outer in [
        ("#runs-table .q-runs", "#q-work"),
        ("#runs-charts .q-legend-item", "#runs-charts .q-chart"),
        (".q-compare th", ".q-compare"),
    ]:
        edge = page.locator(outer).first.evaluate("e => e.getBoundingClientRect().right")
        edges = page.locator(inner).evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
        assert len(edges) and max(edges) <= edge + 1, inner
    # Nothing sticks out of a cell either.
    sticks_out = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
    assert page.locator(".q-compare th, .q-compare td, #runs-table td").evaluate_all(sticks_out) == []
    looked.assert_clean()


@pytest.mark.slow
def test_thousands_of_runs_stay_fast(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    first = write_run(workspace, done=20, num_steps=20)
    for number in range(2_000):
        shutil.copytree(
            first.path, workspace.runs / f"20250101-{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}-copy-{number:04x}"
        )
    lists = RunLists(workspace, RunReaders(workspace))
    until = time.monotonic() + 60
    # A page waits for no journal that was never read; a thread reads on.
    while len(lists.rows()) < 2_001:
        assert time.monotonic() < until
        time.sleep(0.2)
        lists.forget()
    lists.forget()
    began = time.perf_counter()
    lists.rows()
    assert time.perf_counter() - began < 0.5
