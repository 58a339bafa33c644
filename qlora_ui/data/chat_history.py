"""The true history of a chat: what was said, not what a chat widget made of it.

Every side (base, adapter, …) has its own answers, so that in a comparison each model goes on from what it said itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.data.rows import Message

SideName = str
"""`base`, `adapter`, or the name of another loaded adapter."""


@dataclass(slots=True)
class Turn:
    """A question and each side's answer to it."""

    question: str
    answers: dict[SideName, str] = field(default_factory=dict)
    asked_of: str = ""
    """Who was talked to, as `ChatHistory.talks_to` says it."""

    def seen_by(self, side: SideName) -> str | None:
        """That side's answer, be it empty; else another side's, one with words first; None where nobody answered."""
        if side in self.answers:
            return self.answers[side]
        return max(self.answers.values(), key=bool, default=None)


class ChatHistory:
    """Turns with edit, retry, undo and clear; indentation and line ends stay as they were typed."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        """System prompt; empty leaves it to the template."""
        self.tools: tuple[Mapping[str, Any], ...] = ()
        """What may be called, where the conversation began with a row that has some."""
        self.turns: list[Turn] = []
        self.talks_to = ""
        """Who answers. It sees nothing of what was said to others: it would go on in the manner of their answers."""

    def ask(self, question: str) -> Turn:
        """Add a question whose answers are to come; raises QloraUiError where it is empty."""
        if not question.strip():
            raise QloraUiError("There is nothing to send.", fix="Type a message first.", code="empty-message")
        self.turns.append(Turn(question, asked_of=self.talks_to))
        return self.turns[-1]

    def add(self, side: SideName, text: str) -> None:
        """Append streamed text to that side's answer to the last question."""
        answers = self._last().answers
        answers[side] = answers.get(side, "") + text

    def retry(self) -> None:
        """Forget the answers to the last question, so that it is answered again."""
        self._ask_again(self._last())

    def edit(self, index: int, question: str) -> None:
        """Change the question of a turn (from 0) and forget everything after it."""
        turn = self._turn(index)
        if not question.strip():
            raise QloraUiError("A message cannot be empty.", fix="Type something, or remove the turn.", code="empty-message")
        del self.turns[index + 1 :]
        turn.question = question
        self._ask_again(turn)

    def undo(self) -> str:
        """Remove the last turn and return its question, for the text box."""
        question = self.turns.pop().question if self.turns else ""
        if not self.turns:
            self.tools = ()
        return question

    def clear(self) -> None:
        """Forget all turns and what could be called in them; the system prompt stays."""
        self.turns.clear()
        self.tools = ()

    def messages(self, side: SideName) -> list[Message]:
        """The conversation as that side has seen it, up to the question without an answer (or the last answer).

        A turn that the side has not answered, because it was not asked then, shows it the other side's answer. An answer without a
        word stays one, so that turns alternate; a question that nobody answered, as that failed, goes with its answer.
        """
        messages = [Message("system", self.system)] if self.system.strip() else []
        for turn in self.turns[self.since(len(self.turns), self.talks_to) :]:
            is_last = turn is self.turns[-1]
            answer = turn.answers.get(side) if is_last else turn.seen_by(side)
            if answer is not None or is_last:
                messages.append(Message("user", turn.question))
            if answer is not None:
                messages.append(Message("assistant", answer))
        return messages

    def since(self, end: int, talked_to: str) -> int:
        """The first of the turns right before `end` that were all with that one; `end` where there is none."""
        while end and self.turns[end - 1].asked_of == talked_to:
            end -= 1
        return end

    def questions(self, sides: Iterable[SideName]) -> dict[SideName, list[Message]]:
        """What `ChatService.stream` takes to answer the last question on several sides, each with its own history."""
        asked = {}
        for side in sides:
            messages = self.messages(side)
            asked[side] = messages[:-1] if messages and messages[-1].role == "assistant" else messages
        return asked

    def as_dict(self) -> dict[str, Any]:
        """The history as plain data, for a file or the page's own store."""
        turns = [{"question": turn.question, "answers": dict(turn.answers), "asked_of": turn.asked_of} for turn in self.turns]
        return {"system": self.system, "turns": turns, **({"tools": list(self.tools)} if self.tools else {})}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ChatHistory:
        """The history from `as_dict`; raises QloraUiError where it is none."""
        try:
            history = cls(str(value.get("system", "")))
            history.turns = [
                Turn(str(turn["question"]), {str(k): str(v) for k, v in turn["answers"].items()}, str(turn.get("asked_of", "")))
                for turn in value["turns"]
            ]
            history.tools = tuple(tool for tool in value.get("tools") or () if isinstance(tool, dict))
        except (KeyError, TypeError, AttributeError):
            raise QloraUiError("This is not a saved chat.", fix="Choose a file that was saved here.", code="chat-file") from None
        return history

    def _ask_again(self, turn: Turn) -> None:
        turn.answers.clear()
        turn.asked_of = self.talks_to

    def _last(self) -> Turn:
        if not self.turns:
            raise QloraUiError("There is no question yet.", fix="Type a message first.", code="empty-chat")
        return self.turns[-1]

    def _turn(self, index: int) -> Turn:
        if not 0 <= index < len(self.turns):
            raise QloraUiError("That message is not there any more.", fix="Reload the page.", code="no-such-turn")
        return self.turns[index]
