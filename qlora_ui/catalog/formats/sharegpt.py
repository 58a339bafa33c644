"""ShareGPT and its dialects: turns with from and value, speaker and text, or pairs under human and assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ui.catalog.formats.format import (
    DataFormat,
    Normal,
    Row,
    RowProblem,
    call_of,
    content_of,
    kind_of,
    list_in,
    names,
    role_of,
    tools_of,
    turn,
)
from qlora_ui.catalog.formats.messages import COLUMNS

_LISTS = ("conversations", "conversation", "items", *COLUMNS)
_SPEAKER = ("from", "speaker", "role", "author", "user")
_SAID = ("value", "text", "content", "message", "markdown")
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"), ("prompt", "response"))


def _column(row: Row) -> str:
    return next((name for name in _LISTS if isinstance(row.get(name), list)), "")


def _keys(item: Mapping[str, Any]) -> tuple[str, str]:
    """The names of speaker and text in a turn; empty where there are none."""
    speaker = next((name for name in _SPEAKER if name in item), "")
    return speaker, next((name for name in _SAID if name in item and name != speaker), "")


def _pair(item: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in item and pair[1] in item), None)


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    column = _column(row)
    if not column:
        return f"there is no list `conversations`, only {names(row)}"
    first = row[column][0] if row[column] else {}
    if isinstance(first, str) and column in _LISTS[:2]:
        return ""
    if not isinstance(first, dict):
        return f"the turns in `{column}` are {kind_of(first)}"
    if _pair(first):
        return ""
    if "role" in first and "content" in first:
        return "the turns have role and content, which is the messages format"
    speaker, said = _keys(first)
    if column == "conversations" and not first:
        return ""
    return "" if speaker and said else f"the turns in `{column}` have {names(first)} instead of from and value"


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    column = _column(row) or "conversations"
    messages: list[dict[str, Any]] = []
    system = row.get("system") or row.get("system_prompt")
    if isinstance(system, str) and system.strip():
        messages.append(turn("system", system))
    for number, item in enumerate(list_in(row.get(column), column), 1):
        if isinstance(item, str):
            # LIMA's way: plain texts, question and answer in turns.
            messages.append(turn("user" if number % 2 else "assistant", item))
            continue
        if not isinstance(item, dict):
            raise RowProblem("DATA-FIELD", f"message {number} is {kind_of(item)}, not an object", column, "Drop the row.")
        messages += _turns(item, number)
    if len(messages) > 1 and messages[0]["role"] == messages[1]["role"] == "system":
        del messages[0]  # The list brought its own system prompt; the column repeats it.
    tools = tools_of(row) if "tools" in row or "functions" in row else None
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def _turns(item: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    pair = _pair(item)
    if pair:
        return [turn("user", content_of(item[pair[0]], number)), turn("assistant", content_of(item[pair[1]], number))]
    speaker, said = _keys(item)
    role = role_of(item.get(speaker), number)
    value = item.get(said)
    if role == "call":
        message = turn("assistant", "")
        message["tool_calls"] = [call_of(value, number)]
        return [message]
    return [turn(role, content_of(value, number))]


FORMAT = DataFormat(
    name="sharegpt",
    label="ShareGPT",
    about="A list of turns with from (human, gpt, system) and value; also speaker and text, or human and assistant in pairs.",
    examples=(
        {"conversations": [{"from": "human", "value": "Name a metal."}, {"from": "gpt", "value": "Iron."}]},
        {
            "id": "k2",
            "conversations": [
                {"from": "system", "value": "Answer in one word."},
                {"from": "human", "value": "Name a river."},
                {"from": "chatgpt", "value": "Elbe."},
            ],
        },
        {"items": [{"from": "human", "value": "Name a tree."}, {"from": "gpt", "value": "Beech."}]},
        {"conversations": [{"speaker": "user", "text": "Name a bird."}, {"speaker": "bot", "text": "Wren."}]},
        {"conversations": ["Name a star.", "Vega."], "source": "notes"},
        {"conversation": [{"human": "Name a fish.", "assistant": "Perch."}]},
        {
            "tools": '[{"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}]',
            "conversations": [
                {"from": "human", "value": "How late is it?"},
                {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                {"from": "observation", "value": "12:40"},
                {"from": "gpt", "value": "Twenty to one."},
            ],
        },
    ),
    mismatch=_mismatch,
    convert=_convert,
)
