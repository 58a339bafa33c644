"""The layout of OpenAI's chat API, today's standard: a list of turns with role and content, with tools and thinking."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, kind_of, list_in, names
from qlora_ui.catalog.formats.turns import COLUMNS, conversation_of


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
    return conversation_of(row, list_in(row.get(column), column or "messages"), column or "messages")


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
