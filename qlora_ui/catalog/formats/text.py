"""Plain text for continued pre-training: no turns, every token is learned."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, names, text_of, turn
from qlora_ui.catalog.formats.transcript import turns_in

_COLUMNS = ("text", "content", "body", "document", "chat", "dialogue", "conversation")
_TREE = ("parent_id", "message_id", "role", "speaker")


def _column(row: Row) -> str:
    return next((name for name in _COLUMNS if name in row), "")


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    column = _column(row)
    if not column:
        return f"there is no column `text`, only {names(row)}"
    single = next((name for name in _TREE if name in row), "")
    if single:
        return f"each row seems to be one message of a longer talk (it has `{single}`), so that the rows belong together"
    value = row[column]
    if column in ("chat", "dialogue", "conversation") and not (isinstance(value, str) and turns_in(value)):
        return f"`{column}` is no text with speakers"
    if column != "text" and sum(isinstance(cell, str) and len(cell) > 200 for cell in row.values()) > 1:
        return f"`{column}` stands beside another long text: {names(row)}"
    if column not in ("text", "chat") and len(row) > 3:
        return f"`{column}` stands beside other columns: {names(row)}"
    return ""


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    text = text_of(row, _column(row) or "text")
    written = turns_in(text)
    if written is None:
        return {"text": text}
    messages = written[1]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, turn("system", system.removeprefix("SYSTEM:").strip()))
    return {"messages": messages}


FORMAT = DataFormat(
    name="text",
    label="Plain text",
    about="One column text, for teaching a language or a field; everything is learned. Written-out conversations are read as turns.",
    examples=(
        {"text": "The tide comes in twice a day, for the moon pulls on both sides of the earth."},
        {"text": "### Human: Name a metal.### Assistant: Iron."},
        {"text": "Basalt is what lava becomes when it cools fast.", "source": "notes"},
    ),
    mismatch=_mismatch,
    convert=_convert,
)
