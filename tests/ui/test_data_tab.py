"""The Data tab in Chromium: sources, verdict, fixes with undo, columns, one row as tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Looked
from playwright.sync_api import Page, expect

Visit = Callable[..., Looked]
EVIL = "<img src=x onerror=document.title=1>{{7*7}}${8*8}`9`"


def use(page: Page, path: Path) -> None:
    """Add a file by its path and wait for it to be read."""
    page.locator("#q-source-name textarea, #q-source-name input").fill(str(path))
    page.locator("#q-source-add").click()
    expect(page.locator("#q-sources")).to_contain_text(path.name)


def alone(page: Page, path: Path) -> None:
    """Add a file and take off every other."""
    use(page, path)
    for _ in range(page.locator(".q-source").count() - 1):
        page.locator(".q-source", has_not_text=path.name).first.get_by_role("button").click()
        page.wait_for_timeout(600)


def test_rows_of_strangers_stay_text_and_a_bad_row_is_left_out_and_taken_back(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Question {number}?", "completion": f"{EVIL} {number} " + "word " * number} for number in range(40)]
    rows[3]["completion"] = ""
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    page = visit("data").page
    alone(page, path)
    expect(page.locator("#q-verdict")).to_have_text("Look at this")
    expect(page.locator("#q-verdict-body")).to_contain_text("Row 4 has an empty answer")
    expect(page.locator("#q-row")).to_contain_text(EVIL)
    assert page.title() == "QLoRA UI"
    finding = page.locator(".q-finding", has_text="empty answer")
    finding.get_by_role("button", name="Leave this row out").click()
    expect(page.locator("#q-undo")).to_contain_text("Leave this row out")
    expect(page.locator("#q-verdict-body")).to_contain_text("39 rows")
    assert page.evaluate("document.activeElement.closest('#q-verdict-body') !== null"), "the keyboard begins at the page's top again"
    page.locator("#q-undo-back").click()
    expect(page.locator("#q-verdict-body")).to_contain_text("40 rows")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 40

    # What was added after a change is not thrown away with it: its way back is closed.
    finding.get_by_role("button", name="Leave this row out").click()
    expect(page.locator("#q-undo")).to_contain_text("rows.jsonl → rows-v")
    other = tmp_path / "fresh.jsonl"
    other.write_text(json.dumps({"prompt": "One more?", "completion": "Yes"}), encoding="utf-8")
    use(page, other)
    expect(page.locator("#q-undo")).to_be_hidden()
    expect(page.locator(".q-source")).to_have_count(2)


def test_a_broken_file_is_told_with_its_line_and_keeps_start_off(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": \n', encoding="utf-8")
    page = visit("data").page
    alone(page, path)
    expect(page.locator("#q-verdict-body")).to_contain_text("2")
    missing = tmp_path / "nowhere.jsonl"
    page.locator("#q-source-name textarea, #q-source-name input").fill(str(missing))
    page.locator("#q-source-add").click()
    expect(page.get_by_text("There is no file nowhere.jsonl").first).to_be_visible()
    # An upload that takes its time says how far it is, and can be stopped.
    page.route("**/gradio_api/upload*", lambda route: None)
    page.locator("input[type=file]").first.set_input_files(path)
    expect(page.locator("#q-uploading")).to_contain_text("Uploading broken.jsonl · ")
    page.get_by_role("button", name="Cancel the upload").click()
    expect(page.get_by_text("The upload was stopped").first).to_be_visible()
    expect(page.locator("#q-uploading")).to_be_empty()


@pytest.mark.slow
def test_pasted_rows_stay_until_they_can_be_used_and_the_card_shows_the_name(visit: Visit, tmp_path: Path) -> None:
    page, fine = visit("data").page, tmp_path / "fine.jsonl"
    box, good = page.locator("#q-paste-text textarea"), '{"prompt": "a", "completion": "b"}\n'
    fine.write_text(good * 3, encoding="utf-8")
    alone(page, fine)  # what another test left may be broken
    page.locator("#q-paste > button").click()
    box.fill(good + '{"prompt": "a", "completion": \n')
    page.locator("#q-paste-add").click()
    expect(page.locator("#q-ready-problems")).to_contain_text("ends too early")
    expect(box).not_to_have_value("")
    # At 1280 x 800, with a problem in the card, the whole field is above Start.
    name, start = (page.locator(part).bounding_box() for part in ("#output-name textarea, #output-name input", "#q-start"))
    assert name is not None and start is not None and name["y"] + name["height"] <= start["y"] - 12
    box.fill(good + '{"prompt": "c", "completion": "d"}\n')
    page.locator("#q-paste-add").click()
    expect(box).to_have_value("")
    expect(page.locator(".q-source", has_text="pasted-rows")).to_have_count(1)
    expect(page.locator("#q-start")).to_be_enabled()
    # Both attempts are kept; the one that is chosen is taken off with its file, and the other one can be chosen again.
    page.locator("#q-kept > button").click()
    kept = page.locator(".q-kept-file", has_text="pasted-rows")
    expect(kept).to_have_count(2)
    kept.filter(has_text="chosen").get_by_role("button", name="Delete").click()
    expect(page.locator(".q-dialog")).to_contain_text("from where you can put it back")
    page.get_by_role("button", name="Delete", exact=True).last.click()
    expect(kept).to_have_count(1)
    expect(page.locator(".q-source", has_text="pasted-rows")).to_have_count(0)
    kept.get_by_role("button", name="Use").click()
    expect(page.locator(".q-source", has_text="pasted-rows")).to_have_count(1)
    expect(kept.get_by_text("chosen")).to_be_visible()


def test_without_a_dataset_start_says_so(visit: Visit, tmp_path: Path) -> None:
    page = visit("data").page
    for _ in range(page.locator(".q-source").count()):
        page.locator(".q-source").first.get_by_role("button").click()
        page.wait_for_timeout(600)
    expect(page.locator("#q-sources")).to_contain_text("No dataset yet")
    expect(page.locator("#q-start")).to_be_disabled()
    page.locator("#q-add-builtin").click()
    expect(page.locator("#q-start")).to_be_enabled()
    expect(page.locator("#q-verdict")).to_have_text("Ready")


def test_columns_are_mapped_by_hand(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("thema,ask,say\n" + "".join(f"t{n},Question {n}?,Answer {n} for you\n" for n in range(30)), encoding="utf-8")
    page = visit("data").page
    alone(page, path)
    expect(page.locator("#q-verdict-body")).to_contain_text("Map the columns")
    page.get_by_label("Meaning of ask").select_option("user")
    expect(page.locator("#q-ready-problems")).to_contain_text("answer")
    page.get_by_label("Meaning of say").select_option("assistant")
    expect(page.locator("#q-verdict-body")).to_contain_text("30 rows")
    expect(page.locator("#q-row")).to_contain_text("Answer 0 for you")
    expect(page.locator("#q-start")).to_be_enabled()
    page.locator("#q-row-next").click()
    expect(page.locator("#q-row")).to_contain_text("Answer 1 for you")


@pytest.mark.slow
def test_slices_and_weights_of_a_mix(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Q{n}", "completion": f"Something {n * n}"}) for n in range(50)), encoding="utf-8")
    page = visit("data").page
    alone(page, path)
    page.locator("#q-add-builtin").click()
    expect(page.locator(".q-source")).to_have_count(2)
    expect(page.locator("#q-verdict-body")).to_contain_text("170 rows")
    slice_box = page.locator(".q-source", has_text="more.jsonl").get_by_label("Rows")
    slice_box.fill("first 10")
    slice_box.press("Tab")
    expect(page.locator("#q-verdict-body")).to_contain_text("130 rows")
    slice_box = page.locator(".q-source", has_text="more.jsonl").get_by_label("Rows")
    slice_box.fill("some")
    slice_box.press("Tab")
    expect(page.locator("#q-ready-problems")).to_contain_text("first 500")
