"""Conversations that a dataset wrote out as one text, in somebody's template: taken apart into turns again.

Trained as plain text they would teach another model's markers and the questions too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from qlora_ui.catalog.formats.format import ROLES, turn


@dataclass(frozen=True, slots=True)
class Style:
    """A way to write turns as text."""

    name: str
    speaker: re.Pattern[str]
    """Finds where a turn begins, in time that grows with the text and no faster; its first group is the speaker."""
    may_break: bool = False
    """Whether what is said may begin on the line below the speaker."""


ASKED = ("question", "frage", "pregunta", "pergunta", "domanda", "vraag")
ANSWERED = ("answer", "antwort", "respuesta", "réponse", "resposta", "risposta", "antwoord")
"""What people write before a question and its answer."""

_ENDS = ("</s>", "<s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""What stands at the end of a turn, beside white space, and is no part of it."""

STYLES: tuple[Style, ...] = (
    Style("### Human / ### Assistant", re.compile(r"### ?(Human|Assistant|System|User|Instruction|Response): ?"), may_break=True),
    Style("ChatML", re.compile(r"<\|im_start\|> ?(system|user|assistant|tool)\n")),
    Style("Llama 3", re.compile(r"(?:<\|begin_of_text\|>)?<\|start_header_id\|>(system|user|assistant|ipython)<\|end_header_id\|>\n\n")),
    Style("Gemma", re.compile(r"(?:<bos>)?<start_of_turn>(user|model)\n")),
    Style("Zephyr", re.compile(r"<\|(system|user|assistant)\|>\n?")),
    Style("Human: / Assistant:", re.compile(r"(?:^|\n\n)(Human|Assistant): ?"), may_break=True),
    Style("USER: / ASSISTANT:", re.compile(r"(?:^|\n)(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE): ?"), may_break=True),
    Style("Question: / Answer:", re.compile(rf"(?:^|\n)((?i:{'|'.join(ASKED)}|{'|'.join(ANSWERED)})) ?\d{{0,4}} ?: ?"), may_break=True),
    Style("Q: / A:", re.compile(r"(?:^|\n)([QFAB])\d{0,4}: ?"), may_break=True),
)
_SPEAKERS = {"function response": "tool", "instruction": "user", "response": "assistant", "ipython": "tool"}
_SPEAKERS |= dict.fromkeys((*ASKED, "q", "f"), "user") | dict.fromkeys((*ANSWERED, "a"), "assistant")
_QUESTION = re.compile(rf"((?i:{'|'.join(ASKED)}) ?\d{{0,4}} ?|[QF]\d{{0,4}}): ?")
_BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
"""With what a tokenizer begins a text, whoever speaks first."""
_TASK = re.compile(r"\s*Below is an instruction that describes a task[^\n]*\n\s*(?=### ?Instruction:)")
"""What Alpaca writes in front of every row; nobody says it in a chat."""
_INPUT = re.compile(r"\n### ?Input: ?\n?")
_LLAMA2_SYSTEM = re.compile(r"^\s*<<SYS>>(.*?)<</SYS>>\s*(.*)$", re.DOTALL)


def style_of(text: str) -> str:
    """The name of the style that a text is written in, with at least a question and an answer; empty for ordinary text."""
    turns = turns_in(text)
    return turns[0] if turns else ""


def begins_question(line: str) -> bool:
    """Whether a line of a text file begins a question, as `Question:` or `Q:` does."""
    return _QUESTION.match(line) is not None


def turns_in(text: str) -> tuple[str, list[dict[str, Any]]] | None:
    """The style of a written-out conversation and its messages; None for ordinary text."""
    if "[INST]" in text and (messages := _llama2(text)):
        return "Llama 2", messages
    begin = next((mark for mark in _BEGINS if text.startswith(mark)), "")
    text = text.removeprefix(begin)
    if task := _TASK.match(text):
        text = text[task.end() :]
    head = text[:300]
    for style in STYLES:
        first = style.speaker.search(head)
        if first is None or text[: first.start()].strip():
            continue  # A conversation begins with a speaker; a text that merely mentions one is none.
        parts = style.speaker.split(text)
        speakers = [speaker.lower() for speaker in parts[1::2]]
        if "b" in speakers:
            continue  # Where a B stands, an A is a choice and no answer.
        messages = [
            turn(_SPEAKERS.get(speaker) or ROLES[speaker], _said(said, speaker, style))
            for speaker, said in zip(speakers, parts[2::2], strict=True)
        ]
        roles = {message["role"] for message in messages}
        if {"user", "assistant"} <= roles:
            return style.name, messages
    return None


def _said(text: str, speaker: str, style: Style) -> str:
    """What a speaker says, without what the style writes around it."""
    said = _without_end(text)
    if style.may_break:
        said = said.lstrip("\n")
    if speaker == "instruction" and (given := _INPUT.search(said)):
        said = f"{said[: given.start()].rstrip()}\n\n{said[given.end() :].strip()}".rstrip()
    return said


def _without_end(said: str) -> str:
    end = len(said)
    while end:
        if said[end - 1].isspace():
            end -= 1
        elif mark := next((mark for mark in _ENDS if said.endswith(mark, 0, end)), ""):
            end -= len(mark)
        else:
            break
    return said[:end]


def _llama2(text: str) -> list[dict[str, Any]]:
    """The messages of a text that begins with [INST]; none for one that only mentions it."""
    before, *parts = text.split("[INST]")
    if "[/INST]" not in parts[-1]:
        rest = parts.pop()  # A question that was cut off; behind an answer that has not ended, a word of it.
        if parts and not parts[-1].rstrip().endswith(_ENDS):
            parts[-1] += f"[INST]{rest}"
    if before.strip() not in ("", "<s>") or not all("[/INST]" in part for part in parts):
        return []
    messages: list[dict[str, Any]] = []
    for part in parts:
        asked, _, answer = part.partition("[/INST]")
        system = _LLAMA2_SYSTEM.match(asked) if not messages else None
        if system:
            messages.append(turn("system", system[1].strip()))
        messages.append(turn("user", (system[2] if system else asked).strip()))
        if answer := _without_end(answer).strip():
            messages.append(turn("assistant", answer))
    return messages if any(message["role"] == "assistant" for message in messages) else []
