"""The layout of OpenAI's chat API, today's standard: a list of turns with role and content, with tools and thinking."""

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

COLUMNS = ("messages", "conversation", "conversations", "chat", "dialog", "dialogue", "turns")
_THINKING = ("reasoning_content", "thinking", "reasoning", "thought")


def _column(row: Row) -> str:
    return next((name for name in COLUMNS if name in row), "")


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    column = _column(row)
    if not column:
        return f"there is no column `messages`, only {names(row)}"
    value = row[column]
    if column == "messages" and not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return ""  # Meant as messages; what is wrong with it is said per row.
    if not isinstance(value, list):
        return f"`{column}` is {kind_of(value)}"
    first = value[0] if value else {}
    if not isinstance(first, dict):
        return f"the turns in `{column}` are {kind_of(first)}"
    if "from" in first or "value" in first or ("role" not in first and column != "messages"):
        return f"the turns in `{column}` have {names(first)} instead of role and content"
    return ""


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    column = _column(row)
    messages = messages_from(list_in(row.get(column), column or "messages"))
    extra = row.get("system")
    if isinstance(extra, str) and extra.strip() and messages[0]["role"] != "system":
        messages.insert(0, turn("system", extra))
    tools = tools_of(row) if "tools" in row or "functions" in row else None
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def messages_from(turns: list[Any]) -> list[dict[str, Any]]:
    """Turns with role and content as standard messages; raises RowProblem with the turn's number."""
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(turns, 1):
        if not isinstance(item, dict):
            raise RowProblem(
                "DATA-FIELD", f"message {number} is {kind_of(item)}, not an object with role and content", "messages", "Drop the row."
            )
        role = role_of(item.get("role"), number)
        if len(item) == 2 and role != "call" and type(content := item.get("content")) is str:
            messages.append({"role": role, "content": content})  # Nearly every turn of every file: no more work than this.
            continue
        if role == "call":
            message = turn("assistant", "")
            message["tool_calls"] = [call_of(item.get("content"), number)]
        else:
            message = _message(item, role, number)
        messages.append(message)
    return messages


def _message(item: Mapping[str, Any], role: str, number: int) -> dict[str, Any]:
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    if not isinstance(calls, list):
        raise RowProblem("DATA-FIELD", f"message {number}: tool_calls is {kind_of(calls)}, not a list", "tool_calls", "Write a list.")
    message = turn(role, content_of(item.get("content"), number, may_be_missing=bool(calls) and role == "assistant"))
    thinking = next((item[name] for name in _THINKING if item.get(name)), "")
    if thinking and role == "assistant":
        message["reasoning_content"] = content_of(thinking, number)
    if calls and role == "assistant":
        message["tool_calls"] = [call_of(call, number) for call in calls]
    for name in ("name", "tool_call_id"):
        if isinstance(item.get(name), str) and item[name]:
            message[name] = item[name]
    return message


_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}

FORMAT = DataFormat(
    name="messages",
    label="Messages",
    about="A list of turns, each with role and content, as chat services take it; tools and thinking are understood.",
    examples=(
        {
            "messages": [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": "What boils at 100 °C?"},
                {"role": "assistant", "content": "Water, at sea level."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "What is 17 times 6?"},
                {"role": "assistant", "reasoning_content": "10 times 6 is 60, 7 times 6 is 42.", "content": "102"},
            ]
        },
        {
            "tools": [_WEATHER],
            "messages": [
                {"role": "user", "content": "Do I need an umbrella in Bergen?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"town": "Bergen"}'}}],
                },
                {"role": "tool", "name": "weather", "content": '{"rain": true}'},
                {"role": "assistant", "content": "Yes, it rains in Bergen."},
            ],
        },
    ),
    mismatch=_mismatch,
    convert=_convert,
)
