"""Every format's example rows become the conversations that they mean, and detection knows each from the others."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from qlora_ui.base.errors import DataError
from qlora_ui.catalog.formats import FORMATS, format_named
from qlora_ui.catalog.formats.columns import guess_mapping
from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.catalog.formats.transcript import turns_in
from qlora_ui.data.detect import detect
from qlora_ui.settings.run_config import option_by_path

MAPPED = {"user": "{title}: {body}", "assistant": "reply"}
EXAMPLES = [pytest.param(form.name, row, id=f"{form.name} {number}") for form in FORMATS for number, row in enumerate(form.examples)]


def said(normal: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in normal["messages"]]


@pytest.mark.parametrize(("name", "row"), EXAMPLES)
def test_examples_are_detected_and_converted(name: str, row: dict[str, Any]) -> None:
    mapping = MAPPED if "body" in row else {}
    if name == "preference":
        with pytest.raises(DataError) as refused:
            detect([row], "auto", {}, "x.jsonl")
        assert refused.value.code == "DATA-PREFERENCE"
        found = detect([row], "preference", {}, "x.jsonl")
    else:
        found = detect([row], "auto", mapping, "x.jsonl")
    assert found.format.name == name and found.why
    normal = found.format.convert(row, found.mapping)
    if name == "text" and "###" not in row["text"]:
        assert normal == {"text": row["text"]}
        return
    last = normal["messages"][-1]
    assert last["role"] == "assistant" and (last["content"] or last["tool_calls"])
    assert {turn["role"] for turn in normal["messages"]} <= {"system", "user", "assistant", "tool"}
    assert json.loads(json.dumps(normal)) == normal


def test_formats_are_the_choices_of_the_option() -> None:
    assert {form.name for form in FORMATS} | {"auto"} == set(option_by_path()["data.format"].as_dict()["choices"])


@pytest.mark.parametrize(
    "row",
    [
        {"system": "s", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": []},
        {"system": "s", "prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": []},
        {"system": "s", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": ""},
        {
            "system": "another",
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [],
        },
    ],
)
def test_a_chosen_answer_keeps_its_system_prompt(row: dict[str, Any]) -> None:
    assert said(format_named("preference").convert(row, {})) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_every_other_format_has_a_reason() -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    votes = {vote.name: vote for vote in detect([row] * 3, "auto", {}, "x").votes}
    assert votes["sharegpt"].fits == 3 and not votes["sharegpt"].reason
    assert all(vote.reason for name, vote in votes.items() if name != "sharegpt")
    assert "from, value instead of role and content" in votes["messages"].reason


DIALECTS: tuple[tuple[dict[str, Any], list[tuple[str, str]]], ...] = (
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
     [("system", "s"), ("user", "q"), ("assistant", "a")]),
    ({"conversations": [{"from": "user", "value": "q"}, {"from": "bing", "value": "a"}]}, [("user", "q"), ("assistant", "a")]),
    ({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
     [("system", "s"), ("user", "q"), ("assistant", "a")]),
    ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, [("user", "q"), ("assistant", "a")]),
    ({"conversations": [{"role": "user", "value": "q"}, {"role": "assistant", "value": "a"}]}, [("user", "q"), ("assistant", "a")]),
    ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [("user", "q"), ("assistant", "a")]),
    ({"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]}, [("user", "q"), ("assistant", "a")]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]},
     [("user", "q"), ("assistant", "a")]),
    ({"conversation": [{"input": "q", "output": "a"}, {"input": "q2", "output": "a2"}]},
     [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]),
    ({"instruction": "q", "input": None, "output": "a"}, [("user", "q"), ("assistant", "a")]),
    ({"instruction": "q", "input": "with", "response": "a"}, [("user", "q\n\nwith"), ("assistant", "a")]),
    ({"id": 3, "question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
    ({"system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
    ({"Question": "q", "Answer": 42}, [("user", "q"), ("assistant", "42")]),
    ({"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, [("user", "c\n\nq"), ("assistant", "a")]),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
      "completion": [{"role": "assistant", "content": "a"}]}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
    ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}], "system": "s"},
     [("system", "s"), ("user", "q"), ("assistant", "a")]),
)  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), DIALECTS)
def test_dialects(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    found = detect([row], "auto", {}, "x")
    assert said(found.format.convert(row, found.mapping)) == expected


def test_tools_and_thinking_are_kept() -> None:
    form = format_named("messages")
    normal = form.convert(form.examples[2], {})
    assert normal["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"town": "Bergen"}}
    assert normal["tools"][0]["function"]["name"] == "weather"
    assert form.convert(form.examples[1], {})["messages"][1]["reasoning_content"].startswith("10 times 6")
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    answer = [{"role": "function", "content": "r"}, {"role": "assistant", "content": "a"}]
    old = {"functions": [{"name": "f"}], "messages": [{"role": "user", "content": "q"}, call, *answer]}
    assert form.convert(old, {})["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert [turn["role"] for turn in form.convert(old, {})["messages"]] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    "text",
    [
        "Our manual says: the format is [INST] question [/INST] answer. That is all.",
        "[INST] is a marker of Llama 2.",
        "[INST] one [INST] two [/INST] three [/INST]",
        "The markers are ### Human: and ### Assistant: in that file.",
        "Q: Which is red?\nA: blood\nB: snow",
        "An exam has questions.\nQuestion: one\nAnswer: two",
    ],
)
def test_prose_that_mentions_markers_stays_text(text: str) -> None:
    assert turns_in(text) is None
    assert format_named("text").convert({"text": text}, {}) == {"text": text}


@pytest.mark.parametrize(
    "text",
    [
        "Question: Why?\nAnswer: So.",
        "question 12: Why?\n\nanswer 12: So.",
        "Q1: Why?\nA1: So.",
        "Frage: Why?\nAntwort: So.",
        "PREGUNTA : Why?\nRESPUESTA : So.",
    ],
)
def test_questions_and_answers_as_people_note_them_are_turns(text: str) -> None:
    assert said(format_named("text").convert({"text": text}, {})) == [("user", "Why?"), ("assistant", "So.")]


def test_written_out_turns_of_llama_2() -> None:
    text = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s> [INST] Bye [/INST] See you.\n</s>\n<s>[INST] And th"
    found = turns_in(text)
    assert found is not None and found[0] == "Llama 2"
    expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "See you.")]
    assert said({"messages": found[1]}) == expected
    found = turns_in("[INST] A marker? [/INST] Such as [INST], in Llama 2.</s>")
    assert found is not None and said({"messages": found[1]}) == [("user", "A marker?"), ("assistant", "Such as [INST], in Llama 2.")]
    found = turns_in("<|im_start|>user\nWhat is [INST]?<|im_end|>\n<|im_start|>assistant\nA mark.<|im_end|>\n")
    assert found is not None and said({"messages": found[1]}) == [("user", "What is [INST]?"), ("assistant", "A mark.")]


_TASK = "Below is an instruction that describes a task, paired with an input. Write a response that completes the request.\n\n"


@pytest.mark.parametrize(
    ("text", "asked", "answered"),
    [
        ("### Instruction:\nName a metal.\n\n### Response:\nIron.", "Name a metal.", "Iron."),
        (f"{_TASK}### Instruction:\nTranslate.\n\n### Input:\nRain\n\n### Response:\nRegen</s>", "Translate.\n\nRain", "Regen"),
        (f"{_TASK}### Instruction:\nName a tree.\n\n### Input:\n\n### Response: \n  elm", "Name a tree.", "  elm"),
        ("Human:\nHi\n\nAssistant:\n\nHello\n", "Hi", "Hello"),
        ("USER:\nHi\nASSISTANT: Hello", "Hi", "Hello"),
        ("<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n", "Hi", "Hello"),
        ("<s>### Instruction:\nHi\n\n### Response:\nHello</s>", "Hi", "Hello"),
        ("<|im_start|>user\n\nHi<|im_end|>\n<|im_start|>assistant\n\nHello<|im_end|>", "\nHi", "\nHello"),
    ],
)
def test_written_out_turns_begin_with_what_was_said(text: str, asked: str, answered: str) -> None:
    """A line break behind the speaker would be learned as the first token of every answer."""
    found = turns_in(text)
    assert found is not None and said({"messages": found[1]}) == [("user", asked), ("assistant", answered)]


@pytest.mark.parametrize("fill", [" ", "\n", "[INST] a ", "</s>", "### ", "<s>", "\n\n\nx"])
@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        ("### Human: hi", "\n### Assistant: yo"),
        ("USER: hi", "\nASSISTANT: yo"),
        ("Question: hi", "\nAnswer: yo"),
        ("Q: hi", "\nA: yo"),
        ("### Instruction: hi\n### Input:", "\n### Response: yo"),
        ("Below is an instruction that describes a task", "\n### Instruction: hi\n### Response: yo"),
        ("<|im_start|>user\nhi", "\n<|im_start|>assistant\nyo"),
        ("[INST] hi", "[/INST] yo"),
        ("[INST] hi [/INST] yo", ""),
    ],
)
def test_long_runs_of_one_sign_take_no_longer(asks: str, answers: str, fill: str) -> None:
    start = time.process_time()
    turns_in(f"{asks}{fill * 20_000}x{answers}{fill * 20_000}")
    assert time.process_time() - start < 0.5


def test_mapping_by_hand() -> None:
    row = {"title": "Tides", "body": "Why twice?", "reply": "The moon.", "note": "x"}
    with pytest.raises(DataError, match="title, note"):
        detect([{"title": "Tides", "note": "x"}], "columns", {}, "x")
    found = detect([row], "auto", {"prompt": "{title}: {body}", "answer": "reply", "system": "Be brief."}, "x")
    assert said(found.format.convert(row, found.mapping)) == [
        ("system", "Be brief."),
        ("user", "Tides: Why twice?"),
        ("assistant", "The moon."),
    ]
    first_lacks_one = [{"instruction": "q", "output": "o"}, {"instruction": "q", "output": "o", "better": "a"}]
    found = detect(first_lacks_one, "auto", {"user": "instruction", "assistant": "better"}, "x")
    assert found.format.name == "columns" and said(found.format.convert(first_lacks_one[1], found.mapping))[-1] == ("assistant", "a")
    with pytest.raises(DataError, match="nowhere"):
        detect([row], "columns", {"user": "nowhere", "assistant": "reply"}, "x")
    assert guess_mapping(["Query", "response", "id"]) == {"user": "Query", "assistant": "response"}


def test_missing_cells_are_told_with_their_column() -> None:
    with pytest.raises(RowProblem) as problem:
        format_named("columns").convert({"question": "q", "answer": None}, {"user": "question", "assistant": "answer"})
    assert (problem.value.code, problem.value.column) == ("DATA-FIELD", "answer")
