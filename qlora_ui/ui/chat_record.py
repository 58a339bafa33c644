"""What was said in the app's one conversation, with what is known of each answer, as it outlives the app."""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import put_aside, read_json, write_json
from qlora_ui.data.chat_history import ChatHistory
from qlora_ui.data.rows import Message
from qlora_ui.settings.sampling import Sampling, read_sampling

KEPT_KEYS = 16


@dataclass(slots=True)
class Answer:
    """What is known of an answer besides its text."""

    num_tokens: int = 0
    tokens_per_s: float = 0.0
    first_token_s: float = 0.0
    stopped_by: str = ""
    is_kept: bool = False
    """Whether it was saved as a row to learn from."""


@dataclass(slots=True)
class TurnNotes:
    """What belongs to a turn and is not part of the conversation."""

    answers: dict[str, Answer] = field(default_factory=dict)
    reference: str = ""
    """The answer that the row has, where the question came from a held-back row."""
    key: str = field(default_factory=lambda: secrets.token_hex(4))
    """What a page calls the turn by: at its place another may stand by now, asked on another page."""


class ChatRecord:
    """Turns and their notes, system prompt and sampling; who holds it (ui/chat_desk.py) sees to it that one thread changes it."""

    def __init__(self, file: Path) -> None:
        """Go on from the file; from nothing where it is not there, and without what is not as it was saved."""
        self._file = file
        self.sampling = Sampling()
        self.heard: deque[str] = deque(maxlen=KEPT_KEYS)
        """Keys of the last questions: a page whose answer from the app was lost sees by them that its question arrived."""
        self.lost = ""
        """What became of a conversation that could not be read."""
        found = read_json(file)
        saved = found if isinstance(found, dict) else {}
        if isinstance(saved.get("heard"), list):
            self.heard.extend(map(str, saved["heard"]))
        self.history = ChatHistory()
        self.notes: list[TurnNotes] = []
        try:
            self.take(saved)
        except QloraUiError:
            if file.exists():
                aside = put_aside(file).name
                self.lost = f"The last conversation could not be read. It is kept in the workspace as cache/{aside}."
        with contextlib.suppress(QloraUiError):
            self.sampling = read_sampling(saved["sampling"] if isinstance(saved.get("sampling"), dict) else {})

    def take(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `said` gave; raises QloraUiError, with all as it was, where it is something else."""
        talks_to, self.history = self.history.talks_to, ChatHistory.from_dict(saved)
        self.history.talks_to = talks_to
        self.notes = [TurnNotes() for _ in self.history.turns]
        kept = saved["kept"] if isinstance(saved.get("kept"), list) else []
        for notes, sides in zip(self.notes, kept, strict=False):
            notes.answers.update({str(side): Answer(is_kept=True) for side in (sides if isinstance(sides, list) else ())})
        references = saved["references"] if isinstance(saved.get("references"), list) else []
        for notes, reference in zip(self.notes, references, strict=False):
            notes.reference = str(reference)

    def said(self) -> dict[str, Any]:
        """The conversation as plain data, with the answers that were kept as rows, and those that held-back rows have."""
        kept = [[side for side, answer in notes.answers.items() if answer.is_kept] for notes in self.notes]
        return {**self.history.as_dict(), "kept": kept, "references": [notes.reference for notes in self.notes]}

    @property
    def first_own_question(self) -> str:
        """Of somebody who typed it; empty where there are only questions of held-back rows."""
        return next((turn.question for turn, notes in zip(self.history.turns, self.notes, strict=True) if not notes.reference), "")

    def save(self) -> None:
        """Keep it for the next app."""
        try:
            write_json(self._file, {**self.said(), "heard": list(self.heard), "sampling": asdict(self.sampling)})
        except OSError:
            # A full disk must not end a conversation; it is only forgotten when the app ends.
            return

    def place_of(self, key: str, *, is_last: bool = False) -> int:
        """Where the turn of that key stands; raises QloraUiError where it is gone, or others stand behind it and it must be the last."""
        places = [place for place, notes in enumerate(self.notes) if notes.key == key]
        if not places or (is_last and places[0] + 1 < len(self.notes)):
            raise QloraUiError("The conversation went on in another place meanwhile.", fix="Look at it again.", code="stale-page")
        return places[0]

    def ask(self, text: str, *, reference: str = "", key: str = "") -> None:
        """Add a question; raises QloraUiError where it is empty."""
        self.history.ask(text)
        if key:
            self.heard.append(key)
        self.notes.append(TurnNotes(reference=reference))

    def retry(self) -> None:
        """Forget the answers to the last question."""
        self.history.retry()
        self.notes[-1].answers.clear()

    def edit(self, index: int, text: str) -> None:
        """Change a question and forget what came after it."""
        self.history.edit(index, text)
        del self.notes[index + 1 :]
        self.notes[index] = TurnNotes()

    def undo(self) -> str:
        """Take back the last question and its answers; returns the question."""
        question = self.history.undo()
        del self.notes[len(self.history.turns) :]
        return question

    def clear(self) -> None:
        """Forget all turns."""
        self.history.clear()
        self.notes.clear()

    def row(self, index: int, side: str, answer: str) -> list[Message]:
        """The conversation up to a turn as that side has seen it, with that answer to its question."""
        messages = [Message("system", self.history.system)] if self.history.system.strip() else []
        begin = self.history.since(index, self.history.turns[index].asked_of)
        for turn in self.history.turns[begin:index]:
            # A turn without a word would teach to say nothing.
            if said := turn.seen_by(side):
                messages += [Message("user", turn.question), Message("assistant", said)]
        return [*messages, Message("user", self.history.turns[index].question), Message("assistant", answer)]
