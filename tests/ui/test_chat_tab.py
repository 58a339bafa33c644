"""The Chat tab in Chromium, with a real two-layer model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import NARROW, Looked, open_tab, served_page
from playwright.sync_api import Browser, Route, expect

from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sampling import Sampling
from qlora_ui.ui.launch import Served

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Served]:
    with served_page(Workspace.at(tmp_path_factory.mktemp("chat"))) as page:
        page.service.desk.choose(ChatTarget(str(tiny_model_dir)))
        yield page


def say(looked: Looked, text: str) -> None:
    box = looked.page.get_by_label("Message")
    box.fill(text)
    box.press("Enter")


def wait_for_answer(looked: Looked) -> None:
    looked.page.wait_for_timeout(400)  # until the click has arrived
    expect(looked.page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)


def test_answers_stream_and_stay_after_a_reload(browser: Browser, served: Served) -> None:
    served.service.desk.record.sampling = Sampling(max_tokens=24, seed=1)
    looked = Looked(browser, served.url, "chat")
    text = "def f():\n    return 1  # <b>"
    say(looked, text)
    wait_for_answer(looked)
    expect(looked.page.locator(".q-bubble")).to_have_text(text, use_inner_text=True)
    assert looked.page.locator(".q-bubble").text_content() == text  # indentation and all
    # Arabic and Hebrew run from the right, in what was said and where it is typed.
    expect(looked.page.locator(".q-bubble")).to_have_css("unicode-bidi", "plaintext")
    expect(looked.page.get_by_label("Message")).to_have_attribute("dir", "auto")
    expect(looked.page.locator(".q-answer-foot")).to_contain_text("tokens")
    expect(looked.page.locator("[data-part=context]")).to_contain_text("tokens of context used")
    small = Looked(browser, served.url, "chat", NARROW)
    assert small.page.locator(".q-bubble").text_content() == text
    small.page.get_by_text("Save as a file").click()
    expect(small.page.locator(".q-chat .q-menu-list button:visible")).to_have_count(2)  # to read, and the one side that answered
    with small.page.expect_download() as download:
        small.page.get_by_role("button", name="The base model’s answers").click()
    row = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert row["messages"][0]["content"] == text and download.value.suggested_filename.endswith("-base.jsonl")
    small.assert_clean()
    looked.assert_clean()


def test_a_message_whose_answer_was_lost_is_not_sent_twice(browser: Browser, served: Served) -> None:
    served.service.desk.clear()
    served.service.desk.record.sampling = Sampling(max_tokens=4, seed=1)
    looked = Looked(browser, served.url, "chat")
    page, lost = looked.page, []

    def lose(route: Route) -> None:
        is_said = '"say"' in (route.request.post_data or "") and not lost
        if is_said:
            lost.append(route.fetch())
            route.abort()
        else:
            route.continue_()

    page.route("**/component_server/", lose)
    say(looked, "Only once")
    expect(page.locator(".q-bubble")).to_have_text("Only once", timeout=20_000)
    expect(page.get_by_label("Message")).to_have_value("")
    expect(page.locator("[data-part=problems]")).to_be_hidden()
    assert lost and len(served.service.desk.record.history.turns) == 1
    wait_for_answer(looked)


def test_stop_with_escape_retry_edit_take_back_clear(browser: Browser, served: Served) -> None:
    served.service.desk.clear()
    served.service.desk.record.sampling = Sampling(max_tokens=4, seed=1)
    served.service.desk.say("First")
    looked = Looked(browser, served.url, "chat")
    page = looked.page
    wait_for_answer(looked)
    served.service.desk.record.sampling = Sampling(max_tokens=1800, seed=3, temperature=1.5)
    say(looked, "Tell me everything")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".q-answer .q-prose").last).to_be_visible(timeout=30_000)
    page.keyboard.press("Escape")
    wait_for_answer(looked)
    served.service.desk.record.sampling = Sampling(max_tokens=8, seed=3)
    page.get_by_role("button", name="Try again").click()
    wait_for_answer(looked)
    before = page.locator(".q-turn").count()
    page.get_by_role("button", name="Edit").last.click()
    page.get_by_role("dialog").get_by_role("textbox").fill("Tell me less")
    page.get_by_role("dialog").get_by_role("button", name="Ask again").click()
    wait_for_answer(looked)
    expect(page.locator(".q-bubble").last).to_have_text("Tell me less")
    page.get_by_label("Message").fill("half typed")
    page.get_by_role("button", name="Take back").dblclick()
    expect(page.get_by_label("Message")).to_have_value("Tell me less\nhalf typed")
    expect(page.locator(".q-turn")).to_have_count(before - 1)
    page.set_viewport_size({"width": 853, "height": 533})  # 1280 x 800 at 150 %
    page.locator("[data-part=clear]").click()
    expect(page.get_by_role("dialog")).to_contain_text("Rows that you kept stay")
    page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Ask the base model")).to_be_visible()
    page.reload()
    open_tab(page, "chat")
    page.wait_for_timeout(500)
    expect(page.locator(".q-chat-log")).to_have_js_property("scrollTop", 0)
    looked.assert_clean()


def test_a_message_that_the_app_does_not_take_stays_in_the_field(browser: Browser, served: Served) -> None:
    desk = served.service.desk
    desk.clear()
    desk.record.sampling = Sampling(max_tokens=4, seed=1)
    desk.say("First")
    looked = Looked(browser, served.url, "chat")
    box, alert = looked.page.get_by_label("Message"), looked.page.locator(".q-chat [role=alert]")
    wait_for_answer(looked)
    desk.busy = "answering"  # another page asked, and this one has not heard of it
    say(looked, "Refused")
    expect(alert).to_contain_text("An answer is being given")
    expect(looked.page.locator("[data-part=clear]")).to_be_hidden()
    looked.page.wait_for_timeout(2000)  # polls have nothing to say of it
    expect(alert).to_contain_text("An answer is being given")
    expect(box).to_have_value("Refused")
    desk.busy = ""
    expect(looked.page.get_by_role("button", name="Send")).to_be_visible()
    assert looked.problems == []
    looked.page.route("**/component_server/", lambda route: route.abort())
    box.press("Enter")
    expect(alert).to_contain_text("did not reach the app")
    expect(box).to_have_value("Refused")
    looked.page.unroute_all(behavior="ignoreErrors")
    box.press("Enter")
    expect(box).to_have_value("")
    wait_for_answer(looked)
    expect(looked.page.locator(".q-bubble")).to_have_text(["First", "Refused"])
    expect(alert).to_be_hidden()
    looked.page.context.close()


def test_a_corrected_answer_becomes_a_row(browser: Browser, served: Served) -> None:
    served.service.desk.clear()
    served.service.desk.record.sampling = Sampling(max_tokens=8, seed=5)
    looked = Looked(browser, served.url, "chat")
    say(looked, "Hello")
    wait_for_answer(looked)
    looked.page.get_by_role("button", name="Correct it").last.click()
    box, long = looked.page.get_by_role("dialog").get_by_role("textbox"), "Ahoy" + " " * 5000
    box.fill(long)
    expect(box).to_have_value(long)
    looked.page.get_by_role("dialog").get_by_role("button", name="Keep as a row").click()
    expect(looked.page.get_by_text("✓ kept as a row")).to_be_visible()
    row = json.loads((served.service.workspace.datasets / "from-chat.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert row["messages"] == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Ahoy"}]
    looked.assert_clean()


def test_what_cannot_be_done_is_said_in_words(browser: Browser, served: Served) -> None:
    served.service.desk.choose(ChatTarget("/nowhere/at/all"))
    looked = Looked(browser, served.url, "chat")
    expect(looked.page.get_by_label("Talk to").locator("option")).not_to_have_count(0)
    expect(looked.page.get_by_label("Talk to")).to_have_value("")  # and not another model's name
    say(looked, "Hello")
    expect(looked.page.locator(".q-chat [role=alert]")).to_be_visible(timeout=30_000)
    expect(looked.page.locator(".q-chat [role=alert]")).not_to_contain_text("Traceback")
    looked.assert_clean()
