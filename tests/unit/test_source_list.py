"""The list of datasets after presses that are made faster than they are answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qlora_ui.settings.source import DataSource
from qlora_ui.ui import source_list
from qlora_ui.ui.action import Action
from qlora_ui.ui.source_list import changed, edited, with_more


def ids(text: str) -> list[str]:
    return [source["id"] for source in json.loads(text)]


def add(presses: dict[str, Any], text: str, name: str) -> str:
    return changed(presses, text, lambda now, shown: with_more(now, [DataSource(id=name)]))


def edit(presses: dict[str, Any], text: str, name: str, place: int, typed: str = "") -> str:
    action = Action(name, str(place), typed, False, {})
    return changed(presses, text, lambda now, shown: edited(now, shown, action))


def test_what_is_pressed_before_the_answer_adds_to_what_the_press_before_has_made() -> None:
    presses: dict[str, Any] = {}
    shown = json.dumps([{"id": "builtin:plain-pirate"}])
    made = [add(presses, shown, name) for name in ("/a", "/b", "/b", "/c")]
    assert [ids(text) for text in made] == [["/a"], ["/a", "/b"], ["/a", "/b"], ["/a", "/b", "/c"]]
    # Between the answers: the page had the second list by then.
    assert ids(add(presses, made[1], "/d")) == ["/a", "/b", "/c", "/d"]


def test_two_that_are_removed_or_changed_at_once_are_the_ones_that_were_shown() -> None:
    presses: dict[str, Any] = {}
    shown = json.dumps([DataSource(id=name).model_dump() for name in ("/a", "/b", "/c", "/d")])
    edit(presses, shown, "remove", 0)
    edit(presses, shown, "rows", 2, "7")
    last = edit(presses, shown, "remove", 1)
    assert ids(last) == ["/c", "/d"] and json.loads(last)[0]["rows"] == "7"
    assert edit(presses, shown, "remove", 1) == last


def test_a_list_that_came_back_is_the_list_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    presses: dict[str, Any] = {}
    first = json.dumps([DataSource(id="/a").model_dump()])
    two = add(presses, first, "/b")
    assert ids(edit(presses, two, "remove", 1)) == ["/a"]
    assert ids(add(presses, first, "/c")) == ["/a", "/c"]
    # As a preset or the way back put it there, long after.
    now = source_list.time.monotonic() + source_list.LATE_S
    monkeypatch.setattr(source_list.time, "monotonic", lambda: now)
    assert ids(add(presses, first, "/d")) == ["/a", "/d"]
