"""Fixes make a new version of a dataset in the workspace; the user's own file is never touched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import write_json, written_aside
from qlora_ui.data.checks import EMAIL
from qlora_ui.data.folders import DataFolders
from qlora_ui.data.load import Conversations, load_anyway
from qlora_ui.data.rows import Conversation
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource

_VERSION = re.compile(r"-v\d+$")


def apply_fix(
    data: DataSection, workspace: DataFolders, action: Mapping[str, Any], *, positions: Sequence[int] | None = None
) -> dict[str, Any]:
    """Do what a finding's `fix_action` says; returns the settings to change, by option path.

    `drop` leaves out the rows of a finding: those at `positions` of the loaded conversations, else those that the check of
    the text flagged under the code, in the file that `source` names or in all; `drop-all` does so for each of the drops in `of`.
    Rows that could not be read are left out by every new version. `mask-email` writes `<email>` for addresses. `set` changes one
    setting. Raises DataError where no row would be left, or a file was not read to its end.
    """
    kind = action.get("action")
    if kind == "set":
        return {str(action["path"]): action["value"]}
    loaded = load_anyway(data, workspace)
    loaded.report.raise_if_unread()
    if kind in ("drop", "drop-all"):
        drops = drops_of(action)
        if positions is None:
            positions = [place for drop in drops for place in flagged_positions(loaded.conversations, drop)]
        keep = np.ones(len(loaded.conversations), dtype=bool)
        keep[list(positions)] = False
        code = ", ".join(dict.fromkeys(str(drop.get("code", "")) for drop in drops))
        return _new_versions(data, workspace, loaded.conversations, keep, code=code, change=_same)
    if kind == "mask-email":
        everything = np.ones(len(loaded.conversations), dtype=bool)
        return _new_versions(data, workspace, loaded.conversations, everything, code="DATA-EMAIL", change=_without_email)
    raise DataError("This finding has no automatic fix.", fix="Correct the rows in your file.", code="DATA-FIX")


def drops_of(action: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The `drop`s that a `drop` or a `drop-all` is made of."""
    return list(action["of"]) if action.get("action") == "drop-all" else [action]


def flagged_positions(conversations: Conversations, drop: Mapping[str, Any]) -> list[int]:
    """Positions of the rows that the check of the text flagged under a code, in the file of that name; in all for an empty one."""
    code, source, flagged = str(drop.get("code", "")), str(drop.get("source", "")), []
    for number, file in enumerate(conversations.files):
        path = Path(file.report.folder) / "flags.npz"
        if not path.exists() or source not in ("", file.report.name):
            continue
        with np.load(path, allow_pickle=False) as flags:
            if code not in flags.files:
                continue
            inside = np.flatnonzero(np.isin(file.numbers, flags[code]))
        here = conversations.file_numbers == number
        flagged += np.flatnonzero(here & np.isin(conversations.rows, inside)).tolist()
    return flagged


def _new_versions(
    data: DataSection,
    workspace: DataFolders,
    conversations: Conversations,
    keep: np.ndarray[Any, Any],
    *,
    code: str,
    change: Callable[[Conversation], Conversation],
) -> dict[str, Any]:
    """Write the kept rows; one new file for each source, so that weights stay what they were."""
    if not keep.any():
        raise DataError("No row would be left.", fix="Raise the limit instead, or use other data.", code="DATA-EMPTY")
    sources: list[DataSource] = []
    for source in data.sources:
        mine = [number for number, file in enumerate(conversations.files) if file.report.source == source.id]
        here = np.isin(conversations.file_numbers, mine) & keep
        if not here.any():
            continue
        # A weight repeats rows; the new version holds each once and keeps the weight.
        pairs = np.stack([conversations.file_numbers[here], conversations.rows[here]], axis=1)
        _, first = np.unique(pairs, axis=0, return_index=True)
        rows = conversations.take(np.flatnonzero(here)[np.sort(first)])
        path = write_version(rows, workspace, conversations.files[mine[0]].report.name, code, change)
        sources.append(source.model_copy(update={"id": str(path), "config": None, "split": "train", "rows": ""}))
    return {"data.sources": tuple(sources), "data.format": "auto", "data.mapping": {}}


def write_version(
    rows: Sequence[Conversation],
    workspace: DataFolders,
    name: str,
    code: str,
    change: Callable[[Conversation], Conversation] | None = None,
) -> Path:
    """Write rows as the next version of a dataset in the workspace, with a note beside it that says how it came to be."""
    stem = _VERSION.sub("", re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or "dataset")
    workspace.datasets.mkdir(parents=True, exist_ok=True)
    number = 2
    # The note of a version that was deleted keeps its number: runs that learned from it name it.
    while (path := workspace.datasets / f"{stem}-v{number}.jsonl").exists() or path.with_suffix(".json").exists():
        number += 1
    # "x": two pages that fix at once must not write one file.
    path.open("xb").close()
    try:
        num_rows = write_rows(path, map(change, rows) if change else rows)
        write_json(path.with_suffix(".json"), {"from": name, "fix": code, "rows": num_rows})
    except BaseException:
        path.unlink()
        raise
    return path


def write_rows(path: Path, rows: Iterable[Conversation]) -> int:
    """Write rows as a file of JSON lines, whole or not at all; returns how many they are."""
    num_rows = 0
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(row.as_line() + "\n")
            num_rows += 1
    return num_rows


def _same(conversation: Conversation) -> Conversation:
    return conversation


def _without_email(conversation: Conversation) -> Conversation:
    if conversation.text is not None:
        return replace(conversation, text=_masked(conversation.text))
    return Conversation.from_dict(_masked(conversation.as_dict()), conversation.source, conversation.row)


def _masked(value: Any) -> Any:
    """A value with placeholders for the addresses in all of its texts."""
    if isinstance(value, str):
        return EMAIL.sub("<email>", value)
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value
