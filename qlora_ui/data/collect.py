"""Chats that the user liked, collected as training rows in the workspace."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.catalog.formats.turns import messages_from
from qlora_ui.data.folders import DataFolders
from qlora_ui.data.rows import Conversation

_writing = threading.Lock()


def add_chat(messages: Sequence[Mapping[str, Any]], workspace: DataFolders, name: str = "chats") -> Path:
    """Append a conversation of the Chat tab to `datasets/NAME.jsonl` and return that file, which is a dataset like any other.

    Raises DataError where the conversation has no answer to learn from.
    """
    try:
        turns = messages_from([dict(message) for message in messages])
    except RowProblem as problem:
        raise DataError(f"The chat cannot be kept: {problem.what}.", fix=problem.fix, code=problem.code) from None
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
        raise DataError("The chat has no answer to learn from.", fix="Let the model answer first.", code="DATA-LABEL")
    workspace.datasets.mkdir(parents=True, exist_ok=True)
    path = workspace.datasets / f"{name}.jsonl"
    line = Conversation.from_dict({"messages": turns}).as_line() + "\n"
    with _writing, path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(line)
    return path
