"""Answers that the user liked in the chat, collected as rows to learn from: a dataset like any other."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlora_ui.data.folders import DataFolders
from qlora_ui.data.rows import Conversation, Message

FILE = "from-chat.jsonl"
_writing = threading.Lock()


def kept_rows(workspace: DataFolders) -> Path:
    """The file of the rows; it is there once one was kept."""
    return workspace.datasets / FILE


def keep_row(messages: Sequence[Message], workspace: DataFolders, tools: Sequence[Mapping[str, Any]] = ()) -> None:
    """Append a conversation, in which `tools` may be called, that ends with the answer to learn."""
    line = Conversation(tuple(messages), tuple(tools)).as_line().encode() + b"\n"
    path = kept_rows(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writing, path.open("ab+") as file:
        # An editor may have left the last row without an end, and two rows on one line are none.
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)
