"""A JSON file that is one object: the rows in it, where it is a wrapping or a table, or none where it is a row itself."""

from __future__ import annotations

from typing import Any

from qlora_ui.data.row_stream import Notice

_CONVERSATION = ("messages", "conversations", "conversation", "chat", "items", "dialog", "dialogue", "turns", "contents", "data")
_A_ROW = ("messages", "conversations", "prompt", "instruction", "text")


def rows_in_object(value: Any, notice: Notice) -> list[Any] | None:
    """The rows of `{"data": [...]}`, of a table by columns, of an object of rows; None for an object that is one row."""
    if not isinstance(value, dict) or not value:
        return None
    rows = _by_column(value)
    if rows is not None:
        notice("DATA-BY-COLUMN", f"The file is written column by column; it was read as {len(rows):,} rows.")
        return rows
    if any(name in value for name in _A_ROW):
        return None
    lists = {name: item for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)}
    if len(lists) == 1:
        return _unwrapped(next(iter(lists.values())))
    if "train" in lists and len(lists) == len(value):
        others = ", ".join(f"“{name[:40]}”" for name in lists if name != "train")
        notice("DATA-SPLITS", f"The file holds several splits; “train” was read, {others} left aside.")
        return _unwrapped(lists["train"])
    return _by_name(value, notice)


def _unwrapped(rows: list[Any]) -> list[Any]:
    if all(isinstance(row, dict) and set(row) == {"row_idx", "row", "truncated_cells"} for row in rows[:3]):
        return [row["row"] for row in rows]  # The Hub's own row viewer wraps each row.
    return rows


def _by_column(value: dict[str, Any]) -> list[Any] | None:
    """Rows of a table that is written column by column, in the three ways of pandas."""
    if {"columns", "data"} <= set(value) <= {"columns", "data", "index", "index_names", "column_names"}:
        names, cells = value["columns"], value["data"]
        if isinstance(names, list) and isinstance(cells, list) and all(isinstance(row, list) and len(row) == len(names) for row in cells):
            return [dict(zip(map(str, names), row, strict=True)) for row in cells]
    columns = list(value.values())
    if all(isinstance(column, dict) and column for column in columns):
        places = list(columns[0])
        if all(place.isdigit() for place in places) and all(list(column) == places for column in columns):
            return [dict(zip(value, cells, strict=True)) for cells in zip(*(column.values() for column in columns), strict=True)]
        return None
    if any(name in value for name in _CONVERSATION) or not all(isinstance(column, list) for column in columns):
        return None
    if len({len(column) for column in columns}) != 1 or len(columns[0]) < 2:
        return None
    if any(isinstance(cell, dict | list) for column in columns for cell in column):
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _by_name(value: dict[str, Any], notice: Notice) -> list[Any] | None:
    """Rows of `{"id1": {...}, "id2": {...}}`: at least two, all with the same fields."""
    rows = list(value.values())
    if len(rows) < 2 or not all(isinstance(row, dict) and row for row in rows) or len({frozenset(row) for row in rows}) != 1:
        return None
    notice("DATA-BY-NAME", f"The file is an object of named rows; it was read as {len(rows):,} rows.")
    return rows
