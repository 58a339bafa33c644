"""A long read and a download of the Data tab: progress, time left, Cancel, and beginning again."""

# ruff: noqa: E402 (helpers of other test folders must be found first)

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import started_app
from pages import NARROW, WIDE, Looked
from playwright.sync_api import Browser, expect

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "unit")]
from corpus import big
from dataset_hub_stub import DatasetHub, serve

pytestmark = pytest.mark.slow

REPO = "some-owner/chats"


def test_a_long_read_is_cancelled_and_begun_again(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    big(path, 120 << 20)
    with started_app(tmp_path / "workspace") as app:
        looked = Looked(browser, app.url, "data", WIDE)
        page = looked.page
        expect(page.locator("#q-verdict")).to_have_text("Ready")
        page.locator("#q-source-name textarea, #q-source-name input").fill(str(path))
        page.locator("#q-source-add").click()
        reading = page.locator("#q-reading")
        expect(reading).to_contain_text("big.jsonl")
        expect(reading.get_by_role("progressbar")).to_be_visible()
        expect(reading).to_contain_text("left")
        reading.get_by_role("button", name="Cancel").click()
        expect(page.locator("#q-verdict")).to_have_text("Not read")
        expect(page.locator("#q-start")).to_be_disabled()
        expect(page.locator("#q-ready-problems")).to_contain_text("you stopped it")
        assert not list((app.workspace / "cache" / "data").glob("*/rows.jsonl"))[1:], "nothing of the big file is left behind"
        page.locator("#q-verdict-body").get_by_role("button", name="Read them").click()
        expect(page.locator("#q-verdict-body")).to_contain_text("250.0k rows", timeout=60_000)
        looked.assert_clean()
        page.context.close()


def test_a_download_is_cancelled_and_begun_again(browser: Browser, tmp_path: Path) -> None:
    hub = DatasetHub()
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n} to it, at some length."} for n in range(40_000)]
    hub.repos[REPO] = {"train.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    hub.stop_at = 1_500_000
    with serve(hub) as address:
        env = {"HF_ENDPOINT": address, "HF_DATASETS_SERVER": address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost",
               "HF_HUB_CACHE": str(tmp_path / "hub")}  # fmt: skip
        with started_app(tmp_path / "workspace", env=env) as app:
            looked = Looked(browser, app.url, "data", NARROW)
            page = looked.page
            expect(page.locator("#q-verdict")).to_have_text("Ready")
            page.locator("#q-source-name textarea, #q-source-name input").fill(REPO)
            page.locator("#q-source-add").click()
            expect(page.locator("#q-reading")).to_contain_text(f"Downloading {REPO}")
            page.locator("#q-reading").get_by_role("button", name="Cancel").press("Enter")
            expect(page.locator("#q-verdict")).to_have_text("Not read")
            hub.stop_at = None
            hub.release.set()
            page.locator("#q-verdict-body").get_by_role("button", name="Read them").press("Enter")
            expect(page.locator("#q-verdict-body")).to_contain_text("40.0k rows", timeout=30_000)
            looked.assert_clean()
            page.context.close()
