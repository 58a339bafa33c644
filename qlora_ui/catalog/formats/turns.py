"""Lists of turns in every dialect that published datasets use: role and content, from and value, speaker and text, pairs, plain texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ui.catalog.formats.format import ROLES, Normal, Row, RowProblem, call_of, content_of, kind_of, role_of, tools_of, turn

COLUMNS = ("messages", "conversation", "conversations", "chat", "dialog", "dialogue", "turns")
"""Columns that may hold turns with role and content."""
LISTS = (*COLUMNS, "items", "contents", "chat_messages", "data")
"""Columns that may hold a list of turns of any dialect; the first that is there is taken."""
_TEXTS_ALONE = ("messages", "conversation", "conversations", "dialog", "dialogue", "data")
"""Columns in which a list of plain texts is a conversation."""
_SPEAKER = ("role", "from", "speaker", "sender", "author", "user")
_SAID = ("content", "value", "text", "parts", "message", "markdown", "utterance")
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"), ("prompt", "response"))
_THINKING = ("reasoning_content", "thinking", "reasoning", "thought")
_SYSTEM = ("system", "system_prompt", "meta_instruction", "systemInstruction")
_ANY_SYSTEM = frozenset(_SYSTEM)


def turns_column(row: Row) -> str:
    """The name of the column with the list of turns; empty where there is none."""
    return next((name for name in LISTS if isinstance(row.get(name), list)), "")


def keys_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """The names of speaker and text in a turn; empty where there are none."""
    speaker = next((name for name in _SPEAKER if name in item), "")
    return speaker, next((name for name in _SAID if name in item and name != speaker), "")


def is_turn(item: Any, column: str) -> bool:
    """Whether a value is a turn of any dialect, in a list of that column."""
    if isinstance(item, str):
        return column in _TEXTS_ALONE
    return isinstance(item, dict) and (all(keys_of(item)) or _pair(item) is not None)


def _pair(item: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in item and pair[1] in item and not isinstance(item[pair[0]], dict)), None)


def conversation_of(row: Row, turns: list[Any], column: str) -> Normal:
    """A row whose conversation is a list of turns, with the system prompt and the tools that stand beside it; raises RowProblem."""
    messages = with_system(row, messages_from(turns, column))
    tools = tools_of(row) if "tools" in row or "functions" in row else None
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def with_system(row: Row, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages behind the system prompt that stands beside them; those that bring their own have the last word."""
    system = system_of(row)
    return [turn("system", system), *messages] if system and messages[0]["role"] != "system" else messages


def system_of(row: Row) -> str:
    """The system prompt in a column of its own; empty where there is none."""
    if _ANY_SYSTEM.isdisjoint(row):
        return ""
    for name in _SYSTEM:
        value = row.get(name)
        if isinstance(value, dict):
            value = content_of(value.get("parts"), 0) if value.get("parts") else value.get("content")
        if isinstance(value, str) and value.strip():
            return value
    return ""


def history_of(row: Row) -> list[dict[str, Any]]:
    """Earlier turns in a column `history`: pairs of question and answer, or turns; raises RowProblem."""
    history = row.get("history")
    if history is None or history in ("", []):
        return []
    if not isinstance(history, list):
        raise RowProblem("DATA-FIELD", f"`history` is {kind_of(history)}, not a list of pairs", "history", "Drop the column.")
    if all(isinstance(item, dict) for item in history):
        return messages_from(history, "history")
    messages = []
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowProblem("DATA-FIELD", "`history` is not a list of question and answer pairs", "history", "Drop the column.")
        messages += [turn("user", pair[0]), turn("assistant", pair[1])]
    return messages


def messages_from(turns: list[Any], column: str = "messages") -> list[dict[str, Any]]:
    """Turns of any dialect as standard messages; raises RowProblem with the turn's number."""
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(turns, 1):
        if isinstance(item, str) and column in _TEXTS_ALONE:
            messages.append(turn("user" if number % 2 else "assistant", item))  # LIMA's way: question and answer in turns.
            continue
        if not isinstance(item, dict):
            raise RowProblem(
                "DATA-FIELD", f"message {number} is {kind_of(item)}, not an object with role and content", column, "Drop the row."
            )
        if len(item) == 2 and "role" in item and type(content := item.get("content")) is str:
            role = ROLES.get(item["role"]) if type(item["role"]) is str else None
            role = role or role_of(item["role"], number)
            if role != "call":
                messages.append({"role": role, "content": content})  # Nearly every turn of every file: no more work than this.
                continue
        messages += _messages(item, number)
    if not messages:
        raise RowProblem("DATA-SHAPE", f"has no messages: `{column}` is an empty list", column, "Drop the row.")
    return messages


def _messages(item: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    speaker, said = keys_of(item)
    if not speaker and (pair := _pair(item)) is not None:
        return [turn("user", content_of(item[pair[0]], number)), turn("assistant", content_of(item[pair[1]], number))]
    who = item.get(speaker)
    role = role_of(who.get("role") if isinstance(who, dict) else who, number)
    if role == "call":
        message = turn("assistant", "")
        message["tool_calls"] = [call_of(item.get(said), number)]
        return [message]
    return [_message(item, role, item.get(said), number)]


def _message(item: Mapping[str, Any], role: str, said: Any, number: int) -> dict[str, Any]:
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise RowProblem("DATA-FIELD", f"message {number}: tool_calls is {kind_of(calls)}, not a list", "tool_calls", "Write a list.")
    message = turn(role, content_of(said, number, may_be_missing=bool(calls) and role == "assistant"))
    if role == "assistant":
        thinking = next((item[name] for name in _THINKING if item.get(name)), "")
        if thinking:
            message["reasoning_content"] = content_of(thinking, number)
        if calls:
            message["tool_calls"] = [call_of(call, number) for call in calls]
        if item.get("weight") == 0 or item.get("train") is False:
            message["weight"] = 0  # Said to be there for the context only: not learned.
    for name in ("name", "tool_call_id"):
        if isinstance(item.get(name), str) and item[name]:
            message[name] = item[name]
    return message
