"""Preference pairs: chosen and rejected. SFT learns from one answer only, so this is never taken without the user's word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, RowProblem, kind_of, names, text_of, turn
from qlora_ui.catalog.formats.messages import messages_from

_PROMPTS = ("prompt", "question", "instruction", "input", "query")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant|User): ?")


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    missing = [name for name in ("chosen", "rejected") if name not in row]
    return f"there is no column `{missing[0]}`, only {names(row)}" if missing else ""


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    chosen = row.get("chosen")
    prompt = next((row[name] for name in _PROMPTS if row.get(name)), None)
    if isinstance(chosen, list):
        answer = messages_from(chosen)
        if len(answer) > 1 or prompt is None:
            return {"messages": answer}
        return {"messages": [*_prompt_turns(prompt), *answer]}
    if not isinstance(chosen, str):
        raise RowProblem("DATA-FIELD", f"`chosen` is {kind_of(chosen)}, not text", "chosen", "Drop the row.")
    if prompt is not None:
        system = row.get("system")
        before = [turn("system", system)] if isinstance(system, str) and system.strip() else []
        return {"messages": [*before, *_prompt_turns(prompt), turn("assistant", chosen)]}
    return {"messages": _transcript(chosen)}


def _prompt_turns(prompt: Any) -> list[dict[str, Any]]:
    return messages_from(prompt) if isinstance(prompt, list) else [turn("user", text_of({"prompt": prompt}, "prompt"))]


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
    about="Columns chosen and rejected; only the chosen answer is learned, since this kind of training takes one answer.",
    examples=(
        {"prompt": "Is the earth flat?", "chosen": "No, it is nearly a sphere.", "rejected": "Yes."},
        {
            "chosen": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
            "rejected": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}],
        },
        {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi.\n\nAssistant: What?"},
    ),
    mismatch=_mismatch,
    convert=_convert,
)
