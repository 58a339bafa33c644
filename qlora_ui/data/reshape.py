"""Rows as they were meant: names of columns in their usual spelling, lists that were written as text opened again, trees straightened.

Whatever a table or another program did to a row on its way is undone here, before a format looks at it; each kind of repair is
told once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import orjson

from qlora_ui.catalog.formats.format import ROLES, RowProblem
from qlora_ui.catalog.formats.turns import LISTS, keys_of
from qlora_ui.data.json_errors import MAX_DEPTH, careful_loads, depth_problem, too_deep
from qlora_ui.data.row_stream import Item, Notice
from qlora_ui.data.threads import straightened

_SPELLED = ("messages", "conversations", "conversation", "instruction", "input", "output", "prompt", "completion", "text", "chosen",
            "rejected", "system", "tools", "history")  # fmt: skip
_TURNS = frozenset(LISTS) - {"data"}
_MAYBE_TURNS = frozenset(("prompt", "completion", "chosen", "rejected", "history"))
"""Columns that hold text as a rule, also text in JSON that is the answer itself; only a list of chat turns is opened."""
_MUST_OPEN = ("messages", "conversations", "conversation")
_MAX_LITERAL = 1 << 20
_OTHER_ROW = re.compile(r"([}\])])[ \t]*\n\s*([{\[(])")
_IN_QUOTES = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"")


class Reshape:
    """Reshapes rows one by one; with `keeps_names` columns stay as they are spelled, since the user mapped them by these names."""

    def __init__(self, notice: Notice, *, keeps_names: bool = False) -> None:
        self._notice = notice
        self._keeps_names = keeps_names
        self._plans: dict[tuple[str, ...], tuple[dict[str, str], tuple[str, ...], bool]] = {}

    def all(self, rows: Iterator[Item]) -> Iterator[Item]:
        """The rows, reshaped; a row that cannot be opened becomes the problem that it is."""
        for number, row in rows:
            yield (number, row) if isinstance(row, RowProblem) else (number, self.row(row))

    def row(self, row: dict[str, Any]) -> dict[str, Any] | RowProblem:
        """One row."""
        shape = tuple(row)
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._plan(shape)
            if len(self._plans) < 1000:
                self._plans[shape] = plan
        renamed, opened, may_be_tree = plan
        if renamed:
            row = {renamed.get(column, column): cell for column, cell in row.items()}
        for column in opened:
            cell = row[column]
            if type(cell) is str:
                if cell[:1] == "[" or cell[:2] in (" [", "\n["):
                    try:
                        self._open(row, column, cell)
                    except RowProblem as problem:
                        return problem
            elif type(cell) is dict and (turns := _transposed(cell)):
                row[column] = turns
        return straightened(row) if may_be_tree else row

    def _plan(self, shape: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...], bool]:
        renamed: dict[str, str] = {}
        for column in () if self._keeps_names else shape:
            usual = column.strip().lower()
            if usual != column and usual in _SPELLED and usual not in shape and usual not in renamed.values():
                renamed[column] = usual
        names = [renamed.get(column, column) for column in shape]
        return renamed, tuple(name for name in names if name in _TURNS | _MAYBE_TURNS), "prompt" in names or "mapping" in names

    def _open(self, row: dict[str, Any], column: str, cell: str) -> None:
        """Put the list in the place of the text that spells it; a text that is none stays, where texts may stand."""
        language = "JSON"
        try:
            value = _json(cell, self._notice)
        except RowProblem as problem:
            value, language = _literal(cell), "a Python list"
            if value is None and column in _MUST_OPEN:
                raise RowProblem(problem.code, f"`{column}`: {problem.what}", column, problem.fix) from None
        if not isinstance(value, list):
            return
        if column in _MAYBE_TURNS and not _is_meant_as_list(value, column):
            return
        row[column] = value
        self._notice("DATA-NESTED", f"`{column}` is {language} written inside a text; it was read as the list that it spells.")


def _is_meant_as_list(value: list[Any], column: str) -> bool:
    """Whether a list stood for itself: earlier turns in any layout, else turns of known speakers and not an answer in JSON."""
    if column == "history":
        return all(isinstance(item, dict | list) for item in value)
    return bool(value) and all(isinstance(item, dict) and _has_known_speaker(item) for item in value)


def _has_known_speaker(item: dict[str, Any]) -> bool:
    speaker, said = keys_of(item)
    who = item.get(speaker)
    name = who.get("role") if isinstance(who, dict) else who
    return bool(said or "tool_calls" in item) and isinstance(name, str) and name.strip().lower() in ROLES


def _json(text: str, notice: Notice) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return careful_loads(text.encode("utf-8", "replace"), notice)
    if text.count("[") + text.count("{") > MAX_DEPTH and too_deep(value):
        raise depth_problem()
    return value


def _literal(text: str) -> Any:
    """The value of a Python literal, as pandas writes lists into a CSV; None for anything else.

    NumPy's way to print them, without commas between the items, is understood too.
    """
    if len(text) > _MAX_LITERAL or _depth(text) > MAX_DEPTH:
        return None
    for attempt in (text, _OTHER_ROW.sub(r"\1, \2", text)):
        try:
            value = ast.literal_eval(attempt.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        return None if too_deep(value) else value
    return None


def _depth(text: str) -> int:
    """How deep the brackets of a literal are nested, those in quotes not counted."""
    deepest = depth = 0
    for sign in _IN_QUOTES.sub("", text):
        if sign in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]})":
            depth -= 1
    return deepest


def _transposed(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Turns of `{"role": [...], "content": [...]}`, as older Parquet files keep a list of objects; empty for other objects."""
    columns = list(cell.values())
    if not columns or not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        return []
    return [dict(zip(cell, values, strict=True)) for values in zip(*columns, strict=True)]
