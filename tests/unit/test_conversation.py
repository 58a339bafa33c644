"""What each side of a chat is told of what was said, also where an answer has no word or never came."""

from __future__ import annotations

import json
from itertools import pairwise

from qlora_ui.data.chat_history import ChatHistory
from qlora_ui.data.collect import kept_rows
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.chat_desk import ChatDesk
from qlora_ui.ui.chat_record import TurnNotes
from qlora_ui.ui.service import Service


def _history(*turns: tuple[str, dict[str, str]], system: str = "") -> ChatHistory:
    return ChatHistory.from_dict({"system": system, "turns": [{"question": question, "answers": answers} for question, answers in turns]})


def _seen(history: ChatHistory, side: str) -> list[tuple[str, str]]:
    """What the side is asked; turns of user and assistant always alternate."""
    messages = [(message.role, message.content) for message in history.questions([side])[side]]
    turns = [role for role, _ in messages if role != "system"]
    assert turns[-1] == "user" and all(one != two for one, two in pairwise(turns))
    return messages


def test_a_conversation_that_cannot_be_read_is_kept_aside_and_told_of(workspace: Workspace) -> None:
    assert not ChatDesk(Service(workspace)).note
    for text in ("[1]", '{"turns": [{"question"', '{"turns": 1}'):
        (workspace.cache / "chat.json").write_text(text, encoding="utf-8")
        desk = ChatDesk(Service(workspace))
        desk.propose(ChatTarget())
        (aside,) = workspace.cache.glob("chat-unreadable-*.json")
        assert aside.name in desk.note and aside.read_text(encoding="utf-8") == text and not desk.record.history.turns
        aside.unlink()


def test_an_answer_without_a_word_stays_an_answer() -> None:
    history = _history(("one", {"adapter": "", "base": "said"}), ("two", {}))
    assert _seen(history, "adapter") == [("user", "one"), ("assistant", ""), ("user", "two")]
    assert _seen(history, "base") == [("user", "one"), ("assistant", "said"), ("user", "two")]
    alone = _history(("one", {"adapter": ""}), ("two", {}), system="be brief")
    assert _seen(alone, "base") == [("system", "be brief"), ("user", "one"), ("assistant", ""), ("user", "two")]


def test_a_side_that_was_not_asked_is_told_the_others_answer() -> None:
    history = _history(("one", {"base": "", "adapter": "said"}), ("two", {}))
    assert _seen(history, "more") == [("user", "one"), ("assistant", "said"), ("user", "two")]


def test_another_model_sees_nothing_of_what_was_said_to_others() -> None:
    history = ChatHistory()
    history.talks_to = "the base"
    history.ask("one")
    history.add("base", "said")
    history.talks_to = "a run"
    assert history.messages("base") == []
    history.ask("two")
    assert _seen(history, "adapter") == [("user", "two")]
    history.add("adapter", "ahoy")
    history.ask("three")
    assert _seen(history, "base") == [("user", "two"), ("assistant", "ahoy"), ("user", "three")]
    again = ChatHistory.from_dict(history.as_dict())
    again.talks_to = "a run"
    assert _seen(again, "adapter") == _seen(history, "adapter")
    again.edit(0, "one")
    assert _seen(again, "adapter") == [("user", "one")]


def test_a_question_that_failed_goes_with_its_answer() -> None:
    history = _history(("too long for the model", {}), ("two", {}))
    assert _seen(history, "adapter") == [("user", "two")]
    history.add("adapter", "")
    assert [message.role for message in history.messages("adapter")] == ["user", "assistant"]
    history.retry()
    assert _seen(history, "adapter") == [("user", "two")]


def test_a_kept_row_has_the_words_of_its_own_side_and_no_empty_answer(workspace: Workspace) -> None:
    desk = ChatDesk(Service(workspace))
    desk.record.history = _history(
        ("one", {"adapter": "", "base": "not mine"}), ("two", {}), ("three", {"adapter": "mine"}), ("four", {"adapter": "good"})
    )
    desk.record.notes = [TurnNotes() for _ in desk.record.history.turns]
    desk.keep(3, "adapter")
    row = json.loads(kept_rows(workspace).read_text(encoding="utf-8"))
    assert [message["content"] for message in row["messages"]] == ["three", "mine", "four", "good"]
    desk.record.history.turns[2].asked_of = "another"
    desk.keep(3, "adapter", "better")
    row = json.loads(kept_rows(workspace).read_text(encoding="utf-8").splitlines()[-1])
    assert [message["content"] for message in row["messages"]] == ["four", "better"]


def test_the_question_of_a_held_back_row_is_one_after_a_restart_too(workspace: Workspace) -> None:
    desk = ChatDesk(Service(workspace))
    desk.record.ask("Of a row", reference="Its answer")
    desk.record.save()
    again = ChatDesk(Service(workspace))
    assert [notes.reference for notes in again.record.notes] == ["Its answer"] and not again.record.first_own_question
    again.clear()
    assert not list(workspace.trash.glob("*"))
