"""What can be made again is kept within a bound: what goes first, and what stays whatever the bound."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from qlora_ui.base import bounded
from qlora_ui.base.bounded import keep_within, mark_used
from qlora_ui.base.files import size_of_tree
from qlora_ui.data.load import load_anyway, load_conversations
from qlora_ui.runs.workspace import Ownership, Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource

DAY_S = 24 * 3600


def entry(folder: Path, name: str, num_bytes: int, *, days: float = 1) -> Path:
    """Something that was used so many days ago."""
    made = folder / name
    made.mkdir(parents=True)
    (made / "rows.jsonl").write_bytes(bytes(num_bytes))
    used = time.time() - days * DAY_S
    os.utime(made, (used, used))
    return made


def test_what_was_used_longest_ago_goes_first_whichever_folder_it_is_in(workspace: Workspace) -> None:
    data, tokens = workspace.rows_and_tokens
    oldest, older, newer = entry(tokens, "a", 400, days=9), entry(data, "b", 400, days=5), entry(data, "c", 400, days=2)
    aside = entry(data, ".being-written", 4000, days=0.5)
    assert keep_within((data, tokens), 900) == 400
    assert not oldest.exists() and older.exists() and newer.exists() and aside.exists()
    # Of use again: the other one is the oldest now.
    mark_used(older)
    assert keep_within((data, tokens), 500) == 400 and older.exists() and not newer.exists()


def test_what_is_in_use_stays_whatever_the_bound_and_a_wrong_clock_keeps_nothing_for_ever(workspace: Workspace) -> None:
    data, _ = workspace.rows_and_tokens
    in_use, of_tomorrow = entry(data, "a", 400, days=0.01), entry(data, "b", 400, days=-1)
    assert keep_within((data,), 0) == 400
    assert in_use.exists() and not of_tomorrow.exists()


def test_what_is_taken_up_while_all_are_counted_stays(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = workspace.rows_and_tokens
    taken_up, other = entry(data, "a", 400, days=9), entry(data, "b", 400, days=2)
    count = bounded.entries_of

    def then_used(folders: Iterable[Path]) -> list[bounded.Remade]:
        found = count(folders)
        mark_used(taken_up)
        return found

    monkeypatch.setattr(bounded, "entries_of", then_used)
    assert keep_within((data,), 0) == 400 and taken_up.exists() and not other.exists()


def test_a_workspace_that_was_filled_by_an_earlier_version_is_brought_within_the_bound(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_ui.base.bounded.MOST_BYTES", 100)
    old = entry(workspace.rows_and_tokens[1], "a", 400)
    with Ownership(workspace):
        assert not old.exists()


def test_rows_that_were_removed_are_read_again(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{number}", "completion": "a"}) + "\n" for number in range(4)), encoding="utf-8")
    data = DataSection(sources=(DataSource(id=str(path)),))
    loaded = load_anyway(data, workspace)
    file = loaded.conversations.files[0]
    assert file.is_there and size_of_tree(workspace.cache)
    long_ago = time.time() - DAY_S
    os.utime(file.report.folder, (long_ago, long_ago))
    # A run that begins now has use of them, so they stay.
    load_conversations(data, workspace)
    assert keep_within(workspace.rows_and_tokens, 0) == 0
    os.utime(file.report.folder, (long_ago, long_ago))
    assert keep_within(workspace.rows_and_tokens, 0) > 0 and not file.is_there
    assert len(load_conversations(data, workspace).conversations) == 4 and file.is_there
