"""ShareGPT and its dialects: turns with from and value, speaker and text, or pairs under human and assistant."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, kind_of, list_in, names
from qlora_ui.catalog.formats.turns import conversation_of, is_turn, turns_column


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    column = turns_column(row)
    if not column:
        return f"there is no list `conversations`, only {names(row)}"
    turns = row[column]
    if not turns:
        return "" if column == "conversations" else f"`{column}` is an empty list"
    first = turns[0]
    if isinstance(first, dict) and "role" in first and "content" in first:
        return "the turns have role and content, which is the messages format"
    if is_turn(first, column) and (not isinstance(first, str) or (len(turns) > 1 and all(isinstance(text, str) for text in turns))):
        return ""
    if not isinstance(first, dict):
        return f"the turns in `{column}` are {kind_of(first)}"
    return f"the turns in `{column}` have {names(first)} instead of from and value"


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    column = turns_column(row) or "conversations"
    return conversation_of(row, list_in(row.get(column), column), column)


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
