"""Preference pairs and rated answers. SFT learns from one answer only, so they are never taken without the user's word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, RowProblem, kind_of, names, text_of, turn
from qlora_ui.catalog.formats.turns import messages_from, turns_column, with_system

REJECTED = "DATA-REJECTED"
"""The code of a row whose only answer was rated bad: it is left out, which is what the user consented to."""
_PROMPTS = ("prompt", "question", "instruction", "input", "query")
_PAIRS = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_chosen", "response_rejected"),
    ("response_j", "response_k"), ("preferred", "dispreferred"), ("answer_chosen", "answer_rejected"),
)  # fmt: skip
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant|User): ?")


def _pair(row: Row) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in row and pair[1] in row), None)


_MARKS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _mark(row: Row) -> bool | None:
    """Whether the answer of a row is rated good; tables write the mark as text or number. None where there is no such mark."""
    label = row.get("label")
    return _MARKS.get(str(label).strip().lower()) if isinstance(label, bool | int | float | str) else None


def is_rated(row: Row) -> bool:
    """Whether a row is one answer with a mark for good or bad, as KTO takes it."""
    return "completion" in row and "prompt" in row and _mark(row) is not None


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    if _pair(row) is not None or is_rated(row):
        return ""
    missing = [name for name in _PAIRS[0] if name not in row]
    return f"there is no column `{missing[0]}`, only {names(row)}"


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    pair = _pair(row)
    if pair is None and _mark(row) is False:
        raise RowProblem(REJECTED, "has an answer that is rated bad", "label")
    column = pair[0] if pair is not None else "completion"
    answer = row.get(column)
    prompt = next((row[name] for name in _PROMPTS if row.get(name)), None)
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, list):
        messages = messages_from(answer, column)
        if len(messages) == 1 and prompt is not None:
            messages = [*_prompt_turns(prompt), *messages]
        elif len(messages) == 1 and (turns := turns_column(row)):
            messages = [*messages_from(row[turns], turns), *messages]
        return {"messages": with_system(row, messages)}
    if not isinstance(answer, str):
        raise RowProblem("DATA-FIELD", f"`{column}` is {kind_of(answer)}, not text", column, "Drop the row.")
    messages = _transcript(answer) if prompt is None else [*_prompt_turns(prompt), turn("assistant", answer)]
    return {"messages": with_system(row, messages)}


def _prompt_turns(prompt: Any) -> list[dict[str, Any]]:
    return messages_from(prompt, "prompt") if isinstance(prompt, list) else [turn("user", text_of({"prompt": prompt}, "prompt"))]


def _transcript(text: str) -> list[dict[str, Any]]:
    """A whole dialogue in one text, as HH-RLHF writes it: blank line, Human: or Assistant:, words."""
    parts = _SPEAKER.split(text)
    if len(parts) < 3:
        raise RowProblem("DATA-COLS", "`chosen` is a text without a prompt beside it", "chosen", "Add a column `prompt`.")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [turn("assistant" if speaker == "Assistant" else "user", said.strip()) for speaker, said in pairs]


FORMAT = DataFormat(
    name="preference",
    label="Preference pairs, chosen answer only",
    about="Columns chosen and rejected, or answers rated good or bad; only the chosen or good answer is learned.",
    examples=(
        {"prompt": "Is the earth flat?", "chosen": "No, it is nearly a sphere.", "rejected": "Yes."},
        {
            "chosen": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
            "rejected": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}],
        },
        {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi.\n\nAssistant: What?"},
        {
            "conversations": [{"from": "human", "value": "Name a gas."}],
            "chosen": {"from": "gpt", "value": "Argon."},
            "rejected": {"from": "gpt", "value": "Gold."},
        },
        {"prompt": "Name a moon.", "completion": "Titan.", "label": True},
    ),
    mismatch=_mismatch,
    convert=_convert,
)
