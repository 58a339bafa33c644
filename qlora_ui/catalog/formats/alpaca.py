"""Alpaca: instruction, an optional input, output; LLaMA-Factory's system and history are understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, cell_of, names, text_of, turn
from qlora_ui.catalog.formats.turns import history_of, system_of

_INPUTS = ("input", "context")
_ANSWERS = ("output", "response", "answer", "completion")


def _answer(row: Row) -> str:
    return next((name for name in _ANSWERS if name in row), "")


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    if "instruction" not in row:
        return f"there is no column `instruction`, only {names(row)}"
    return "" if _answer(row) else f"`instruction` has no `output` beside it, only {names(row)}"


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    instruction = text_of(row, "instruction")
    given = next((text for name in _INPUTS if (text := text_of(row, name, may_be_missing=True)).strip()), "")
    messages: list[dict[str, Any]] = []
    if system := system_of(row):
        messages.append(turn("system", system))
    messages += history_of(row)
    messages.append(turn("user", f"{instruction}\n\n{given}" if given.strip() and instruction.strip() else instruction or given))
    messages.append(turn("assistant", cell_of(row, _answer(row))))
    return {"messages": messages}


FORMAT = DataFormat(
    name="alpaca",
    label="Alpaca",
    about="Columns instruction, input (may be empty) and output.",
    examples=(
        {"instruction": "Name the capital of Norway.", "input": "", "output": "Oslo."},
        {"instruction": "Translate into German.", "input": "Good morning.", "output": "Guten Morgen."},
        {"instruction": "Who wrote it?", "context": "Peer Gynt is a play by Henrik Ibsen.", "response": "Ibsen.", "category": "closed_qa"},
        {"instruction": "And of Denmark?", "output": "Copenhagen.", "history": [["Capital of Norway?", "Oslo."]], "system": "Be brief."},
    ),
    mismatch=_mismatch,
    convert=_convert,
)
