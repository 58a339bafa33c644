"""The conversation as a file: read again by the app itself as rows to learn from, each side in its own words."""

from __future__ import annotations

import json

from qlora_ui.data.chat_history import Turn
from qlora_ui.data.load import load_conversations
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.chat_record import TurnNotes
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.chat import _talk, choose_run
from tests.journals import write_run

HOSTILE = "Code:\n```\n# no heading\n    four spaces"


def talked(workspace: Workspace) -> Service:
    """Two turns with base and adapter of a run, one only with the base between them, one that nobody answered."""
    service, run = Service(workspace), write_run(workspace, values={"output.name": "Pirate"}, end="done")
    choose_run(service, run.id)
    key = f"run|{run.id}|"
    service.desk.record.history.system = "Be brief."
    service.desk.record.history.turns = [
        Turn("one", {"base": HOSTILE, "adapter": "Aye"}, key),
        Turn("two\u2028still two", {"base": "plain"}, key),
        Turn("three", {"base": " ", "adapter": "Aye aye"}, key),
        Turn("four", {}, key),
    ]
    service.desk.record.notes = [TurnNotes() for _ in range(4)]
    return service


def test_the_rows_of_a_side_are_read_by_the_data_tab_and_hold_its_words_alone(workspace: Workspace) -> None:
    service = talked(workspace)
    assert _talk(service, {})["files"] == ["markdown", "base", "adapter"]
    said = {}
    for side in ("base", "adapter"):
        file = _talk(service, {"do": "save", "as": side})["file"]
        assert file["name"].startswith("chat-Pirate-") and file["name"].endswith(f"-{side}.jsonl")
        assert {(row["side"], row["answered_by"]) for row in map(json.loads, file["text"].split("\n")[:-1])} == {(side, "Pirate")}
        path = workspace.temp / file["name"]
        path.write_text(file["text"], encoding="utf-8")
        loaded = load_conversations(DataSection(sources=(DataSource(id=str(path)),)), workspace)
        said[side] = [[message.content for message in row.messages] for row in loaded.conversations]
    assert said["adapter"] == [["Be brief.", "one", "Aye"], ["Be brief.", "three", "Aye aye"]]
    assert said["base"] == [["Be brief.", "one", HOSTILE, "two\u2028still two", "plain"]]


def test_no_text_of_a_model_breaks_the_markdown_of_what_follows(workspace: Workspace) -> None:
    service = talked(workspace)
    file = _talk(service, {"do": "save", "as": "markdown"})["file"]
    assert file["name"].endswith(".md") and "*With Pirate*" in file["text"] and "*Not answered.*" in file["text"]
    lines = file["text"].split("\n")
    assert "> ```" in lines and "> # no heading" in lines and ">     four spaces" in lines
    assert [line for line in lines if line.startswith("## ")] == [f"## {number}. Question" for number in (1, 2, 3, 4)]


def test_nothing_is_saved_of_an_answer_that_is_being_given(workspace: Workspace) -> None:
    service = talked(workspace)
    service.desk.busy = "answering"
    drawn = _talk(service, {"do": "save", "as": "markdown"})
    assert drawn["files"] == [] and "file" not in drawn and "not as it was" in drawn["failure"]
