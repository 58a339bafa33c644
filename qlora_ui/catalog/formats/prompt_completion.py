"""Prompt and completion, TRL's own layout, each as text or as a list of messages."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, RowProblem, cell_of, kind_of, names, text_of, tools_of, turn
from qlora_ui.catalog.formats.turns import messages_from, with_system


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    missing = [name for name in ("prompt", "completion") if name not in row]
    return f"there is no column `{missing[0]}`, only {names(row)}" if missing else ""


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) != isinstance(completion, list):
        raise RowProblem(
            "DATA-FIELD",
            f"`prompt` is {kind_of(prompt)} but `completion` is {kind_of(completion)}",
            "completion",
            "Write both as text or both as messages.",
        )
    if isinstance(prompt, list) and isinstance(completion, list):
        if not completion:
            raise RowProblem("DATA-SHAPE", "has no messages in `completion`", "completion", "Drop the row.")
        normal: Normal = {"messages": with_system(row, messages_from([*prompt, *completion]))}
        tools = tools_of(row) if "tools" in row else None
        return {**normal, "tools": tools} if tools else normal
    return {"messages": with_system(row, [turn("user", text_of(row, "prompt")), turn("assistant", cell_of(row, "completion"))])}


FORMAT = DataFormat(
    name="prompt-completion",
    label="Prompt and completion",
    about="Columns prompt and completion, both text or both lists of messages; they become a user's and an assistant's turn.",
    examples=(
        {"prompt": "The opposite of hot is", "completion": "cold."},
        {
            "prompt": [{"role": "user", "content": "The opposite of wet?"}],
            "completion": [{"role": "assistant", "content": "Dry."}],
        },
    ),
    mismatch=_mismatch,
    convert=_convert,
)
