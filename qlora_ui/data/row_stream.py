"""What every reader of rows has in common: the form of its answers, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_ui.base.units import MIB, format_bytes
from qlora_ui.catalog.formats.format import RowProblem, kind_of

MAX_ROW_BYTES = 16 * MIB
MAX_COLUMNS = 1000
BLOCK = MIB

Item = tuple[int, "dict[str, Any] | RowProblem"]
Notice = Callable[[str, str], None]
"""Takes a code and a sentence: something worth a note, such as the encoding that was found."""


class Progress:
    """How far a reader is."""

    def __init__(self) -> None:
        self.done_bytes = 0
        """Bytes of the file that were read."""
        self.unpacked_bytes = 0
        """What they are unpacked, where that is more."""


def as_row(value: Any) -> dict[str, Any] | RowProblem:
    """The value where it is an object or a conversation (a list of turns), else the problem that it is."""
    if type(value) is dict:
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {"messages": value}
    if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
        return {"conversations": value}
    return RowProblem("DATA-SHAPE", f"is {kind_of(value)}; each row must be an object", fix="Write an object with named fields.")


def too_long(num_bytes: int) -> RowProblem:
    """The refusal of a row of that length."""
    limit = format_bytes(MAX_ROW_BYTES)
    return RowProblem("DATA-LIMIT", f"is {format_bytes(num_bytes)} long; {limit} is the limit", fix="Split it into several rows.")
