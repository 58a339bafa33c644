"""Any two columns, mapped by the user or by their usual names: question and answer, query and response, input and output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from qlora_ui.catalog.formats.format import DataFormat, Normal, Row, RowProblem, call_of, cell_of, names, tools_of, turn
from qlora_ui.catalog.formats.turns import history_of

_ALIASES = {"prompt": "user", "question": "user", "answer": "assistant", "completion": "assistant", "response": "assistant"}
_USUAL = {
    "user": ("question", "query", "prompt", "instruction", "input", "inputs", "problem", "user", "human", "src", "source", "input_text",
        "frage", "pregunta", "pergunta", "domanda", "vraag", "вопрос", "问题", "質問"),
    "assistant": (
        "answer", "response", "completion", "output", "solution", "assistant", "reply", "gpt", "target", "targets", "tgt", "answers",
        "correct_answer", "output_text", "generated_solution", "antwort", "respuesta", "réponse", "resposta", "risposta", "antwoord",
        "ответ", "回答", "答案",
    ),
    "system": ("system", "system_prompt", "systemprompt"),
    "thinking": ("reasoning", "reasoning_content", "thinking", "thought", "cot", "complex_cot", "chain_of_thought", "rationale"),
    "context": ("context", "passage", "background", "support"),
}  # fmt: skip
_PAIRS = (
    ("q", "a"), ("human", "bot"), ("context", "response"), ("document", "summary"), ("article", "summary"), ("dialogue", "summary"),
    ("article", "highlights"), ("text", "summary"),
)  # fmt: skip
"""Names that say what they are only beside each other: question or long text, answer or summary."""
_CHOICES = ("choices", "options", "distractors", "option_a", "choice1", "a", "opa")
_BRACES = re.compile(r"\{([^{}\n]{1,80})\}")


def guess_mapping(columns: Iterable[str]) -> dict[str, str]:
    """Which columns are probably the user's text, the answer and the system prompt, by their usual names."""
    by_name = {column.strip().lower(): column for column in columns}
    guess = {}
    for role, usual in _USUAL.items():
        column = next((by_name[name] for name in usual if name in by_name), None)
        if column is not None:
            guess[role] = column
    context = guess.pop("context", None)
    if not {"user", "assistant"} <= set(guess):
        for asked, answer in _PAIRS:
            if asked in by_name and answer in by_name:
                guess |= {"user": by_name[asked], "assistant": by_name[answer]}
                return guess
    if context is not None and "user" in guess:
        guess["user"] = f"{{{context}}}\n\n{{{guess['user']}}}"  # The question is about it, so the model must see it.
    if any(name in by_name for name in _CHOICES):
        guess.pop("assistant", None)  # The answer is a number or letter of a choice: only a person can say how to ask.
    return guess


def standard_mapping(mapping: Mapping[str, str]) -> dict[str, str]:
    """A mapping with its keys as user, assistant, system and thinking; empty columns left out."""
    return {_ALIASES.get(role.strip().lower(), role.strip().lower()): column for role, column in mapping.items() if column.strip()}


def _mismatch(row: Row, mapping: Mapping[str, str]) -> str:
    chosen = standard_mapping(mapping) or guess_mapping(row)
    missing = [role for role in ("user", "assistant") if role not in chosen]
    if missing:
        return f"no column looks like the {' or the '.join('question' if role == 'user' else 'answer' for role in missing)}: {names(row)}"
    # A system prompt that names no column is meant as the prompt itself.
    absent = [column for role in ("user", "assistant") for column in _columns_in(chosen[role]) if column not in row]
    return f"the mapped column “{absent[0]}” is not in the row, which has {names(row)}" if absent else ""


def _columns_in(value: str) -> list[str]:
    return _BRACES.findall(value) or [value]


def _filled(row: Row, value: str) -> str:
    if _BRACES.search(value):
        return _BRACES.sub(lambda match: _cell(row, match[1]) if row.get(match[1]) is not None else "", value).strip()
    return _cell(row, value)


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, dict) and isinstance(value.get("text"), list) and value["text"] and isinstance(value["text"][0], str):
        return value["text"][0]  # SQuAD's answers: {"text": [...], "answer_start": [...]}; the first is the one to learn.
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]
    return cell_of(row, column)


def _convert(row: Row, mapping: Mapping[str, str]) -> Normal:
    chosen = standard_mapping(mapping) or guess_mapping(row)
    messages: list[dict[str, Any]] = []
    if "system" in chosen and isinstance(row.get(chosen["system"], ""), str):
        system = _filled(row, chosen["system"]) if _columns_in(chosen["system"])[0] in row else chosen["system"]
        if system.strip():
            messages.append(turn("system", system))
    messages += history_of(row)
    for role in ("user", "assistant"):
        if role not in chosen:
            raise RowProblem(
                "DATA-COLS",
                f"columns found: {names(row)}; none is mapped to {role}",
                "",
                "Say which column is the question and the answer.",
            )
        messages.append(turn(role, _filled(row, chosen[role])))
    thinking = chosen.get("thinking")
    if thinking and isinstance(row.get(thinking), str) and row[thinking].strip():
        messages[-1]["reasoning_content"] = row[thinking]
    tools = tools_of(row) if "tools" in row else None
    if not tools:
        return {"messages": messages}
    calls = _calls_in(messages[-1]["content"])
    if calls:
        messages[-1] = {**turn("assistant", ""), "tool_calls": calls}
    return {"messages": messages, "tools": tools}


def _calls_in(text: str) -> list[dict[str, Any]]:
    """The tool calls that an answer consists of; none where it is words."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        return []
    return [call_of(call, 2) for call in calls]


FORMAT = DataFormat(
    name="columns",
    label="Question and answer columns",
    about="One column holds the question, another the answer; a third may hold the system prompt.",
    examples=(
        {"question": "How many legs has a spider?", "answer": "Eight."},
        {"query": "Largest planet?", "response": "Jupiter."},
        {"Frage": "Wie viele Beine hat eine Spinne?", "Antwort": "Acht."},
        {"context": "Saturn has rings.", "question": "Which planet has rings?", "answers": {"text": ["Saturn"], "answer_start": [0]}},
        {
            "query": "How late is it?",
            "tools": '[{"name": "clock", "parameters": {}}]',
            "answers": '[{"name": "clock", "arguments": {}}]',
        },
        {"title": "Tides", "body": "Why do they come twice a day?", "reply": "The moon pulls on both sides of the earth."},
    ),
    mismatch=_mismatch,
    convert=_convert,
)
