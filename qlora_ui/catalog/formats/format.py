"""What a dataset format is: one row of a file in, one conversation as plain data out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""One row as the file has it."""

Normal = dict[str, Any]
"""One row as training takes it: `{"messages": [...]}`, with `"tools"` where there are some, or `{"text": "..."}`."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "instruction", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model", "ai", "chatbot", "agent", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython", "tool_result"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "function-call"), "call"),
}
"""Names of speakers that published datasets use; `call` is an assistant's tool call written as its own turn."""


class RowProblem(Exception):
    """One row that does not say what its format demands."""

    def __init__(self, code: str, what: str, column: str = "", fix: str = "", *, is_last: bool = False) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.column = column
        self.fix = fix
        self.is_last = is_last
        """Whether nothing after the row can be read, since nobody knows where the next one begins."""


@dataclass(frozen=True, slots=True)
class DataFormat:
    """A layout of rows: how it is known, how it becomes messages."""

    name: str
    """The value of the option `data.format`."""
    label: str
    about: str
    """One sentence for the page: what such a row looks like."""
    examples: tuple[dict[str, Any], ...]
    mismatch: Callable[[Row, Mapping[str, str]], str]
    """Why a row is not of this format, in words that follow “not X, since …”; empty where it is."""
    convert: Callable[[Row, Mapping[str, str]], Normal]
    """The row as messages; raises RowProblem."""


def kind_of(value: Any) -> str:
    """The kind of a JSON value in words."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "NaN, which is not a number" if math.isnan(value) else "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list | tuple) else "an object"


def names(columns: Row | list[str]) -> str:
    """Column names for a sentence, the first eight."""
    listed = [str(name)[:40] for name in columns]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def text_of(row: Row, column: str, *, may_be_missing: bool = False) -> str:
    """The text in a column; raises RowProblem for anything that is not text."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if value is None and may_be_missing:
        return ""
    if value is None and column not in row:
        raise RowProblem("DATA-COLS", f"has no column “{column}”, only {names(row)}", column, "Add it or map other columns.")
    raise RowProblem("DATA-FIELD", f"`{column}` is {kind_of(value)}, not text", column, "Write it as text in quotes, or drop the row.")


def cell_of(row: Row, column: str) -> str:
    """The text in a column, where a number or a truth value is a fine answer too; raises RowProblem."""
    value = row.get(column)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return str(value)
    return text_of(row, column)


def turn(role: str, content: str) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": content}


def role_of(value: Any, number: int) -> str:
    """The standard role for a speaker's name; raises RowProblem with the allowed names. `number` counts from 1."""
    if isinstance(value, str):
        role = ROLES.get(value) or ROLES.get(value.strip().lower())
        if role:
            return role
        what = f"message {number} has the role “{value[:40]}”"
    else:
        what = f"message {number} has no role" if value is None else f"message {number}: role is {kind_of(value)}"
    raise RowProblem("DATA-ROLE", what, "role", "Use system, user, assistant or tool (human and gpt are understood too).")


def content_of(value: Any, number: int, *, may_be_missing: bool = False) -> str:
    """The text of a message: text, or a list of text parts; raises RowProblem. `number` counts from 1."""
    if isinstance(value, str):
        return value
    if value is None and may_be_missing:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        texts = []
        for part in value:
            kind = part.get("type", "text")
            if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise RowProblem(
                    "DATA-FIELD",
                    f"message {number}: a part of the content is “{str(kind)[:30]}”, not text",
                    "content",
                    "Only text is learned from: drop the rows with images or sound.",
                )
            texts.append(part["text"])
        return "".join(texts)
    raise RowProblem(
        "DATA-FIELD", f"message {number}: content is {kind_of(value)}, not text", "content", "Write the content as text, or drop the row."
    )


def list_in(value: Any, column: str) -> list[Any]:
    """A list, also one written as JSON inside a text cell where `{column}` came from a CSV; raises RowProblem."""
    if isinstance(value, list):
        if not value:
            raise RowProblem("DATA-SHAPE", f"has no messages: `{column}` is an empty list", column, "Drop the row.")
        return value
    if isinstance(value, str):
        raise RowProblem(
            "DATA-FIELD",
            f"`{column}` is text, not a list; it may be JSON written inside a string",
            column,
            "Write the list itself, without the quotes around it.",
        )
    raise RowProblem("DATA-FIELD", f"`{column}` is {kind_of(value)}, not a list", column, "Give a list of messages.")


def tools_of(row: Row) -> list[Any] | None:
    """The tools that a row offers to the model, as a list of schemas; None where it offers none. Raises RowProblem."""
    column = "tools" if "tools" in row else "functions"
    value = row.get(column)
    if value is None or value in ("", []):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowProblem(
                "DATA-FIELD", f"`{column}` is text that is not JSON", column, "Write the tools as a JSON list of schemas, or empty it."
            ) from None
        if value in (None, []):
            return None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowProblem("DATA-FIELD", f"`{column}` is not a list of tool schemas", column, "Write a list of objects.")
    return [{"type": "function", "function": tool} if "name" in tool and "function" not in tool else tool for tool in value]


def call_of(value: Any, number: int) -> dict[str, Any]:
    """One tool call as templates take it, its arguments as an object; raises RowProblem."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowProblem(
            "DATA-FIELD",
            f"message {number}: a tool call has no function name",
            "tool_calls",
            "Write it as name and arguments, or drop the row.",
        )
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            pass  # Some models are taught to call with plain text; the template prints it as it is.
    call = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    if isinstance(value, dict) and isinstance(value.get("id"), str):
        call["id"] = value["id"]
    return call
