"""Alpaca: instruction, an optional input, output; LLaMA-Factory's system and history are understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, RowProblem, kind_of, names, text_of, turn

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
    system = text_of(row, "system", may_be_missing=True)
    if system.strip():
        messages.append(turn("system", system))
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowProblem("DATA-FIELD", f"`history` is {kind_of(history)}, not a list of pairs", "history", "Drop the column.")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowProblem("DATA-FIELD", "`history` is not a list of question and answer pairs", "history", "Drop the column.")
        messages += [turn("user", pair[0]), turn("assistant", pair[1])]
    messages.append(turn("user", f"{instruction}\n\n{given}" if given.strip() and instruction.strip() else instruction or given))
    messages.append(turn("assistant", text_of(row, _answer(row))))
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
