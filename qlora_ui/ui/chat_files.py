"""The conversation as a file to take away: Markdown for reading, or rows to learn from with one side's answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import groupby

from qlora_ui.base.files import safe_stem
from qlora_ui.data.chat_history import ChatHistory, Turn
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.ui.chat_record import ChatRecord
from qlora_ui.ui.views.chat_view import SIDE_WORDS

NameOf = Callable[[str], str]
"""The name of who was talked to, by its key (`ChatTarget.key`)."""


def kinds_of_file(history: ChatHistory) -> list[str]:
    """`markdown` where something was said, then each side of which there are answers."""
    sides = [side for side in SIDE_WORDS if any(turn.answers.get(side, "").strip() for turn in history.turns)]
    return ["markdown", *sides] if history.turns else []


def file_name(kind: str, name: str, now: datetime) -> str:
    """What the browser calls the file: with whom, when, and whose answers."""
    stem = f"chat-{safe_stem(name)[:60]}-{now:%Y-%m-%d-%H%M}"
    return f"{stem}.md" if kind == "markdown" else f"{stem}-{kind}.jsonl"


def as_markdown(record: ChatRecord, name_of: NameOf, now: datetime) -> str:
    """All that was said, to be read; every text is a quotation, so that no heading or open fence of it reaches the next."""
    history = record.history
    parts = [f"# Conversation of {now:%d %B %Y, %H:%M}"]
    if history.system.strip():
        parts += ["**System prompt**", _quoted(history.system)]
    talked_to = None
    for number, (turn, notes) in enumerate(zip(history.turns, record.notes, strict=True), 1):
        if turn.asked_of != talked_to:
            talked_to = turn.asked_of
            parts.append(f"---\n\n*With {name_of(talked_to)}*")
        parts += [f"## {number}. Question", _quoted(turn.question)]
        for side in (side for side in SIDE_WORDS if side in turn.answers):
            parts += [f"### {SIDE_WORDS[side]}", _quoted(turn.answers[side]) if turn.answers[side].strip() else "*It said nothing.*"]
        if not turn.answers:
            parts.append("*Not answered.*")
        if notes.reference:
            parts += ["### The answer that this row has", _quoted(notes.reference)]
    return "\n\n".join(parts) + "\n"


def as_rows(history: ChatHistory, side: str, name_of: NameOf) -> str:
    """JSONL as the Data tab takes it: a row for each stretch of turns that this side of one model answered, in its own words alone."""
    lines = []
    for (talked_to, has_answer), turns in groupby(history.turns, lambda turn: (turn.asked_of, bool(turn.answers.get(side, "").strip()))):
        if has_answer:
            row = {**_conversation(history, turns, side).as_dict(), "answered_by": name_of(talked_to), "side": side}
            lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines)


def _conversation(history: ChatHistory, turns: Iterable[Turn], side: str) -> Conversation:
    messages = [Message("system", history.system)] if history.system.strip() else []
    for turn in turns:
        messages += [Message("user", turn.question), Message("assistant", turn.answers[side])]
    return Conversation(tuple(messages), history.tools)


def _quoted(text: str) -> str:
    # Not by `splitlines`: what it takes for an end of a line beside these is part of the text.
    return "\n".join(f"> {line}" if line else ">" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
