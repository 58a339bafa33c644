"""Text on its way into HTML."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ui.base.errors import Problem
from qlora_ui.settings.run_config import option_by_path
from qlora_ui.ui.action import Action
from qlora_ui.ui.controls import from_component
from qlora_ui.ui.handler import problems_html
from qlora_ui.ui.markup import end_cut, prose, sentence_case


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the line ends too early", "The line ends too early"),
        ("rows.jsonl line 2 ends too early", "rows.jsonl line 2 ends too early"),
        ("myData: This is a folder", "myData: This is a folder"),
        ("my data.csv: The first line", "my data.csv: The first line"),
        ("lora.rank is wrong", "lora.rank is wrong"),
    ],
)
def test_a_sentence_begins_with_a_capital_and_a_name_stays_as_it_is(text: str, said: str) -> None:
    assert sentence_case(text) == said


def test_names_in_backticks_are_set_as_code_and_stay_text() -> None:
    assert prose("the column `<b>` is empty") == "the column <code>&lt;b&gt;</code> is empty"
    assert prose("one ` alone") == "one &#96; alone"


def test_a_question_in_a_message_of_the_page_keeps_its_mark_alone() -> None:
    problem = Problem("lora.rnk", "there is no such option", "The file is older…", "Did you mean lora.rank?")
    assert problems_html((problem,)).endswith("The file is older… Did you mean lora.rank?</li></ul>")


def test_a_sentence_is_cut_at_its_end() -> None:
    assert end_cut("What can I do?", 8) == "What ca…" and end_cut("short", 8) == "short"


def test_half_a_letter_from_a_page_reaches_no_file() -> None:
    """As a browser sends what was cut within an emoji: nothing with it can be written, and drawing it failed as a fault of the app."""
    half = json.loads('"Pirate \\ud83d"')
    event: Any = SimpleNamespace(_data={"act": "rename", "id": "run", "text": half})
    assert Action.of(event).text == from_component(option_by_path()["output.name"], half) == "Pirate \N{REPLACEMENT CHARACTER}"
