"""The rows of a run as a chat sees them: those that it held back as questions, and the system prompt that all of them share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from qlora_ui.base.errors import QloraUiError
from qlora_ui.data.rows import Message
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace

MOST = 200


class HeldBack(NamedTuple):
    """A row that a run never trained on: its first question, the answer to it, and what stands before both."""

    question: str
    answer: str
    system: str
    tools: tuple[Mapping[str, Any], ...] = ()
    """What could be called; an answer that calls one is given as its JSON."""


def held_back_rows(workspace: Workspace, run_id: str, most: int = MOST) -> list[HeldBack]:
    """The first of them; empty where the run is gone or held none back."""
    return _rows(workspace, run_id, "eval.jsonl", most)


def shared_system(workspace: Workspace, run_id: str) -> str:
    """The system prompt that the first rows of a run all begin with, and its adapter learned to answer after; else empty."""
    systems = {row.system for row in _rows(workspace, run_id, "train.jsonl", MOST)}
    return systems.pop() if len(systems) == 1 else ""


def _rows(workspace: Workspace, run_id: str, name: str, most: int) -> list[HeldBack]:
    try:
        # As bytes: a text would also end a line at the U+2028 in somebody's answer.
        with (find_run(workspace, run_id).data / name).open("rb") as file:
            lines = list(itertools.islice(file, most))
    except (OSError, QloraUiError):
        return []
    rows = []
    for line in lines:
        try:
            value = json.loads(line)
            messages = value.get("messages") or []
        except (ValueError, AttributeError):
            continue
        question, answer, system = (
            next((_said(message) for message in messages if message.get("role") == role), "") for role in ("user", "assistant", "system")
        )
        if question:
            rows.append(HeldBack(question, answer, system, tuple(value.get("tools") or ())))
    return rows


def _said(message: Mapping[str, Any]) -> str:
    """What a turn says; nothing where its dataset wants nobody to learn it."""
    if message.get("weight") == 0:
        return ""
    return Message.from_dict(message).in_words()
