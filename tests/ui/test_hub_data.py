"""Datasets of the Hub on the Data tab: search, subset, split, rows before the download; and every refusal in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import started_app
from pages import NARROW, Looked
from playwright.sync_api import Browser, Page, expect

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))
from dataset_hub_stub import DatasetHub, serve

REPO = "some-owner/chats"
EVIL = "<img src=x onerror=document.title=1>"


def lines(first: int, count: int) -> bytes:
    rows = [{"prompt": f"Question {n}? {EVIL}", "completion": f"Answer {n} to it."} for n in range(first, first + count)]
    return "\n".join(map(json.dumps, rows)).encode()


def look_for(page: Page, words: str) -> None:
    if not page.locator("#q-hub-data-text textarea, #q-hub-data-text input").is_visible():
        page.locator("#q-hub-data > button").click()
    page.locator("#q-hub-data-text textarea, #q-hub-data-text input").fill(words)
    page.locator("#q-hub-data-search").click()


def test_without_a_network_the_search_says_so(visit: Callable[..., Looked]) -> None:
    page = visit("data").page
    look_for(page, "chats")
    expect(page.locator("#q-hub-data-found")).to_contain_text("The Hub cannot be reached")
    look_for(page, "some-owner/chats")
    expect(page.locator("#q-hub-data-look")).to_contain_text("The Hub cannot be reached")
    expect(page.locator("#q-hub-data-search")).to_be_enabled()
    look_for(page, "")
    expect(page.locator("#q-hub-data-found")).to_contain_text("Type a part of a name")


@pytest.mark.slow
def test_search_subset_split_rows_use(browser: Browser, tmp_path: Path) -> None:
    hub = DatasetHub()
    hub.repos[REPO] = {"en/train.jsonl": lines(0, 30), "en/test.jsonl": lines(100, 12), "de/train.jsonl": lines(200, 25)}
    files = {"en": ("train", "test"), "de": ("train",)}
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}.jsonl"} for split in splits]}
        for name, splits in files.items()
    ]
    hub.cards[REPO] = {"configs": configs}
    with serve(hub) as address:
        env = {"HF_ENDPOINT": address, "HF_DATASETS_SERVER": address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost",
               "HF_HUB_CACHE": str(tmp_path / "hub")}  # fmt: skip
        with started_app(tmp_path / "workspace", env=env) as app:
            looked = Looked(browser, app.url, "data", NARROW)
            page, look = looked.page, looked.page.locator("#q-hub-data-look")
            look_for(page, "chats")
            page.locator("#q-hub-data-found").get_by_role("button", name=REPO).click()
            expect(look).to_contain_text("Question 0?")
            expect(look).to_contain_text(EVIL)
            look.get_by_label("Split").select_option("test")
            expect(look).to_contain_text("Question 100?")
            look.get_by_label("Subset").select_option("de")
            expect(look).to_contain_text("Question 200?")
            assert not [line for line in hub.asked if "/resolve/" in line and "bytes=" not in line], "a preview downloads nothing"

            look.get_by_role("button", name="Use this dataset").click()
            expect(page.locator("#q-sources")).to_contain_text("de, train")
            expect(page.locator(".q-source")).to_have_count(1)
            expect(page.locator("#q-verdict-body")).to_contain_text("25 rows")
            # Another split of the same dataset is another source.
            look.get_by_label("Subset").select_option("en")
            expect(look).to_contain_text("Question 0?")
            look.get_by_role("button", name="Use this dataset").click()
            expect(page.locator(".q-source")).to_have_count(2)
            expect(page.locator("#q-verdict-body")).to_contain_text("55 rows")
            looked.assert_clean()

            hub.status = 401
            page.locator("#q-hub-data-found").get_by_role("button", name=REPO).click()
            expect(look).to_contain_text("accept the licence on https://huggingface.co/datasets/")
            page.context.close()
