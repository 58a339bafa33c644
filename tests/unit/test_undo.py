"""The bar that takes back what the app changed: its words, and when the way back is closed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qlora_ui.settings.run_config import option_by_path
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.undo import SET, change_html, is_overtaken, value_words

OPTIONS = option_by_path()
LONG = "/home/someone/.local/share/qlora-ui/datasets/"


def held(*names: str) -> str:
    """The datasets as the page's hidden control holds them."""
    return json.dumps([DataSource(id=LONG + name).model_dump() for name in names])


def test_datasets_are_said_by_their_names_and_never_as_json() -> None:
    sources, mapping = OPTIONS["data.sources"], OPTIONS["data.mapping"]
    new = (DataSource(id=LONG + "rows-v2.jsonl"),)
    html = change_html("Leave this row out", [(sources, held("rows.jsonl"), new), (mapping, '{"user": "ask", "assistant": "say"}', {})])
    assert "<s>rows.jsonl</s> → <b>rows-v2.jsonl</b>" in html and "<s>user: ask, assistant: say</s> → <b>nothing</b>" in html
    assert "weight" not in html and LONG not in html
    some = DataSource(id="hub:a/b", rows="first 10")
    assert value_words(sources, (some, DataSource(id="builtin:plain-pirate"))) == "a/b (first 10), Everyday questions, answered by a pirate"
    assert value_words(sources, (some.model_copy(update={"weight": 2.0}),)) == "a/b (first 10, weight 2)"
    assert value_words(OPTIONS["model.id"], "builtin:smollm2-135m-instruct") == "SmolLM2-135M-Instruct (built in)"
    assert value_words(sources, "[]") == "nothing" and value_words(OPTIONS["lora.targets"], ["q_proj", "v_proj"]) == "q_proj, v_proj"


@pytest.mark.parametrize(
    ("now", "is_gone"),
    [
        ({"data.sources": held("rows-v2.jsonl")}, False),
        ({"data.sources": held("rows-v2.jsonl", "fresh.jsonl")}, True),
        # A page that asked before the change had reached it.
        ({"data.sources": held("rows.jsonl")}, False),
        ({"data.sources": held("rows-v2.jsonl"), "data.max_length": 777}, True),
        ({"data.sources": held("rows-v2.jsonl"), "data.max_length": 512}, False),
    ],
)
def test_the_way_back_is_closed_once_its_options_hold_something_else(now: dict[str, Any], is_gone: bool) -> None:
    new = [DataSource(id=LONG + "rows-v2.jsonl").model_dump()]
    old = {"data.sources": held("rows.jsonl"), "data.max_length": 1024, SET: {"data.sources": new, "data.max_length": 512}}
    assert is_overtaken({"data.max_length": 512, **now}, old) is is_gone
    assert not is_overtaken(now, {})
