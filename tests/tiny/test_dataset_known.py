"""Some hundred rows in the layout of datasets that many people train on, as their publishers' cards describe them."""

# ruff: noqa: E501 (rows read better in one line)
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_ui.base.errors import DataError
from qlora_ui.data.load import load_conversations
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection

Q, A = "Which river runs through town {n}, and how long is it?", "The river of town {n} is {n} kilometres long and runs into the sea."


def q(n: int) -> str:
    return Q.format(n=n)


def a(n: int) -> str:
    return A.format(n=n)


Make = Callable[[int], dict[str, Any]]
Turns = Callable[[int], list[tuple[str, str]]]


def pair(n: int) -> list[tuple[str, str]]:
    return [("user", q(n)), ("assistant", a(n))]


def with_system(n: int) -> list[tuple[str, str]]:
    return [("system", "Be exact."), *pair(n)]


def twice(n: int) -> list[tuple[str, str]]:
    return [*pair(n), ("user", f"Sure, {n}?"), ("assistant", f"Yes, {n}.")]


CALL = '{"name": "river", "arguments": {"town": 1}}'

KNOWN: dict[str, tuple[str, Make, Turns]] = {
    "Dolly": ("alpaca", lambda n: {"instruction": q(n), "context": "", "response": a(n), "category": "open_qa"}, pair),
    "Dolly with context": (
        "alpaca",
        lambda n: {"instruction": q(n), "context": "A map.", "response": a(n), "category": "closed_qa"},
        lambda n: [("user", f"{q(n)}\n\nA map."), ("assistant", a(n))],
    ),
    "Alpaca with its text column": (
        "alpaca",
        lambda n: {"instruction": q(n), "input": "", "output": a(n), "text": f"Below is an instruction.\n\n### Response:\n{a(n)}"},
        pair,
    ),
    "OpenOrca": ("columns", lambda n: {"id": f"niv.{n}", "system_prompt": "Be exact.", "question": q(n), "response": a(n)}, with_system),
    "SlimOrca": (
        "sharegpt",
        lambda n: {
            "conversations": [
                {"from": "system", "value": "Be exact.", "weight": None},
                {"from": "human", "value": q(n), "weight": 0},
                {"from": "gpt", "value": a(n), "weight": 1},
            ]
        },
        with_system,
    ),
    "OpenHermes": (
        "sharegpt",
        lambda n: {"title": None, "conversations": [{"from": "human", "value": q(n)}, {"from": "gpt", "value": a(n)}], "system_prompt": None},
        pair,
    ),
    "UltraChat": (
        "messages",
        lambda n: {
            "prompt": q(n),
            "prompt_id": f"{n:064x}",
            "messages": [{"content": text, "role": role} for role, text in twice(n)],
        },
        twice,
    ),
    "no_robots": (
        "messages",
        lambda n: {"prompt": q(n), "messages": [{"role": role, "content": text} for role, text in with_system(n)], "category": "Generation"},
        with_system,
    ),
    "Capybara": ("sharegpt", lambda n: {"source": "x", "conversation": [{"input": q(n), "output": a(n)}, {"input": f"Sure, {n}?", "output": f"Yes, {n}."}]}, twice),
    "LIMA": ("sharegpt", lambda n: {"conversations": [q(n), a(n), f"Sure, {n}?", f"Yes, {n}."], "source": "stackexchange"}, twice),
    "WildChat": (
        "messages",
        lambda n: {
            "conversation_hash": f"{n:x}",
            "conversation": [{"content": text, "role": role, "language": "English", "redacted": False, "turn_identifier": 7} for role, text in pair(n)],
            "turn": 1,
        },
        pair,
    ),
    "GSM8K": ("columns", lambda n: {"question": q(n), "answer": f"{a(n)}\n#### {n}"}, lambda n: [("user", q(n)), ("assistant", f"{a(n)}\n#### {n}")]),
    "MetaMathQA": ("columns", lambda n: {"query": q(n), "response": a(n), "type": "GSM_Rephrased", "original_question": "?"}, pair),
    "Aya": ("columns", lambda n: {"inputs": q(n), "targets": a(n), "language": "English", "user_id": f"u{n}"}, pair),
    "Firefly": ("columns", lambda n: {"kind": "QA", "input": q(n), "target": a(n)}, pair),
    "SQuAD": (
        "columns",
        lambda n: {"id": f"{n}", "title": "Rivers", "context": "Map.", "question": q(n), "answers": {"text": [a(n)], "answer_start": [0]}},
        lambda n: [("user", f"Map.\n\n{q(n)}"), ("assistant", a(n))],
    ),
    "Guanaco": ("text", lambda n: {"text": f"### Human: {q(n)}### Assistant: {a(n)}### Human: Sure, {n}?### Assistant: Yes, {n}."}, twice),
    "Guanaco for Llama 2": ("text", lambda n: {"text": f"<s>[INST] {q(n)} [/INST] {a(n)} </s><s>[INST] Sure, {n}? [/INST] Yes, {n}. </s>"}, twice),
    "Llama 2 with system": ("text", lambda n: {"text": f"<s>[INST] <<SYS>>\nBe exact.\n<</SYS>>\n\n{q(n)} [/INST] {a(n)} </s>"}, with_system),
    "ChatML written out": (
        "text",
        lambda n: {"text": "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in with_system(n))},
        with_system,
    ),
    "Zephyr written out": ("text", lambda n: {"text": f"<|system|>\nBe exact.</s>\n<|user|>\n{q(n)}</s>\n<|assistant|>\n{a(n)}</s>\n"}, with_system),
    "Glaive function calling": (
        "text",
        lambda n: {
            "system": "SYSTEM: Be exact.",
            "chat": f"USER: {q(n)}\n\n\nASSISTANT: <functioncall> {CALL} <|endoftext|>\n\n\nFUNCTION RESPONSE: {n}\n\n\nASSISTANT: {a(n)} <|endoftext|>\n\n\n",
        },
        lambda n: [("system", "Be exact."), ("user", q(n)), ("assistant", f"<functioncall> {CALL}"), ("tool", str(n)), ("assistant", a(n))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_layout(name: str, tmp_path: Path, workspace: Workspace) -> None:
    form, make, turns = KNOWN[name]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(make(n)) + "\n" for n in range(300)), encoding="utf-8")
    loaded = load_conversations(DataSection(sources=(str(path),)), workspace)
    assert loaded.report.format == form and len(loaded.conversations) == 300
    for n in (0, 1, 150, 299):
        assert [(message.role, message.content) for message in loaded.conversations[n].messages] == turns(n)
    assert not any(finding.severity == "error" for finding in loaded.report.findings)


def test_known_layouts_that_need_a_word_from_the_user(tmp_path: Path, workspace: Workspace) -> None:
    rows = {
        "DATA-PREFERENCE": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "DATA-COLS": {"question": "q", "choices": ["a", "b"], "answer": 1},
    }
    for code, row in rows.items():
        path = tmp_path / f"{code}.jsonl"
        path.write_text((json.dumps(row) + "\n") * 12, encoding="utf-8")
        with pytest.raises(DataError) as refused:
            load_conversations(DataSection(sources=(str(path),)), workspace)
        assert refused.value.code == code


def test_preference_pairs_with_consent(tmp_path: Path, workspace: Workspace) -> None:
    rows = [{"system": "Be exact.", "question": q(n), "chosen": a(n), "rejected": "No."} for n in range(12)]
    path = tmp_path / "dpo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load_conversations(DataSection(sources=(str(path),), format="preference"), workspace)
    assert [(message.role, message.content) for message in loaded.conversations[3].messages] == with_system(3)
