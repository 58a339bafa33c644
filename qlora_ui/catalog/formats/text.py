"""Plain text for continued pre-training: no turns, every token is learned."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, names, text_of

_COLUMNS = ("text", "content", "body", "document")


def _column(row: Row) -> str:
    return next((name for name in _COLUMNS if name in row), "")


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    column = _column(row)
    if not column:
        return f"there is no column `text`, only {names(row)}"
    if column != "text" and len(row) > 3:
        return f"`{column}` stands beside other columns: {names(row)}"
    return ""


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    return {"text": text_of(row, _column(row) or "text")}


FORMAT = DataFormat(
    name="text",
    label="Plain text",
    about="One column text, for teaching a language or a field rather than a conversation; everything is learned.",
    examples=(
        {"text": "The tide comes in twice a day, for the moon pulls on both sides of the earth."},
        {"text": "Basalt is what lava becomes when it cools fast.", "source": "notes"},
    ),
    mismatch=_mismatch,
    convert=_convert,
)
