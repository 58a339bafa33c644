"""The one conversation of the app: who is talked to, what was said, what is being answered. Every page shows the same.

It lives here and not in a page, so that an answer goes on when a page is reloaded, and its text stays as it was typed.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ui.base.errors import Problem, QloraUiError
from qlora_ui.base.files import read_json, write_json
from qlora_ui.base.progress import Cancelled
from qlora_ui.base.trash import discard, throw_away
from qlora_ui.data.collect import keep_row
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.deleted import CONVERSATION
from qlora_ui.runs.held_back import held_back_rows, shared_system
from qlora_ui.settings.sampling import read_sampling
from qlora_ui.ui.chat_record import Answer, ChatRecord
from qlora_ui.ui.handler import attempt
from qlora_ui.ui.markup import end_cut
from qlora_ui.ui.new_data import KEPT_ROWS_WORDS

if TYPE_CHECKING:
    from qlora_ui.ui.service import Service

SIDES = {"base": ("base",), "adapter": ("adapter",), "both": ("base", "adapter")}
"""Who answers, by the position of the switch."""
SYSTEM_CHARACTERS = 20_000
LEARNED_SYSTEM = "This run learned to answer after a system prompt. It is set here, too, under “System prompt and sampling”."
AS_IT_WAS = "The conversation as it was is in the trash, at the end of the Runs tab."


class ChatDesk:
    """Safe to use from any thread; one answer at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._changed = threading.Condition(threading.RLock())
        self.record = ChatRecord(service.workspace.root / CONVERSATION)
        self._wants_stop = False
        self._next_row = 0
        self._learned_system = ""
        """The system prompt of the run that is talked to, where its rows share one."""
        self.note = self.record.lost
        self.who: ChatTarget | None = None
        self.is_chosen = False
        """Whether somebody chose who is talked to, or talks to an adapter already; else the newest run is proposed."""
        self.mode = "both"
        self.busy = ""
        """Empty, `loading` or `answering`."""
        self.doing: tuple[str, float | None] = ("", None)
        """What is being done, in words, and its done share."""
        self.problems: tuple[Problem, ...] = ()
        self.context: tuple[int, int] = (0, 0)
        """Tokens of the conversation and tokens that the model reads."""
        self.version = 1

    # What pages see ------------------------------------------------------------------------------------------------

    def wait(self, version: int, timeout_s: float) -> None:
        """Wait until something is newer than `version`, at most `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version, timeout_s)

    @property
    def sides(self) -> tuple[str, ...]:
        """Who answers the next question."""
        return SIDES[self.mode] if self.who is not None and self.who.run_id else ("base",)

    def locked(self) -> Any:
        """A context manager in which nothing changes: for drawing all of it at once."""
        return self._changed

    # What pages do -------------------------------------------------------------------------------------------------

    def choose(self, who: ChatTarget) -> None:
        """Talk to somebody else, who sees nothing of the conversation so far; it stays on the page."""
        with self._changed:
            if self.busy:
                self.stop()
            self.is_chosen = True
            self._turn_to(who)

    def propose(self, who: ChatTarget) -> None:
        """Talk to this one as long as nobody chooses and no answer is being given."""
        with self._changed:
            if not self.is_chosen and not self.busy and who != self.who:
                self._turn_to(who)

    def leave(self, run_id: str | None, model_id: str = "") -> None:
        """Talk no more to a run that was deleted, or to a model alone: its answer ends, it leaves the memory, and the newest run is
        proposed again.
        """
        with self._changed:
            if self.who is None or self.who.run_id != run_id or (run_id is None and self.who.model_id != model_id):
                return
            if self.busy:
                self.stop()
            self.is_chosen = False
            self._turn_to(ChatTarget())
            # None, so that the words stay over the next proposal; they go when something is asked or chosen.
            self.who = None
            gone = "run" if run_id else "model"
            self.note = f"The {gone} that was talked to here was deleted. What it said stays; the list above says who answers from now on."
            # Asked, not waited for: what is being loaded is loaded to its end first.
            self._service.card.free("chat")

    def switch(self, mode: str) -> None:
        """Base, adapter or both."""
        if mode in SIDES:
            with self._changed:
                self.mode = mode
                self._touch()

    def set_up(self, *, system: str | None = None, sampling: Mapping[str, Any] | None = None) -> None:
        """System prompt and sampling for the answers to come; raises QloraUiError for numbers that cannot be."""
        with self._changed:
            if system is not None:
                self.record.history.system = system[:SYSTEM_CHARACTERS]
            if sampling is not None:
                self.record.sampling = read_sampling(sampling)
            self.record.save()
            self._touch()

    def say(self, text: str, *, reference: str = "", key: str = "") -> None:
        """Ask a question and have it answered; one with the key of an earlier one is that one, sent again."""
        with self._changed:
            if key and key in self.record.heard:
                return
            self._check_free()
            self.record.ask(text, reference=reference, key=key)
            self._begin()

    def retry(self) -> None:
        """Have the last question answered again."""
        with self._changed:
            self._check_free()
            self.record.retry()
            self._begin()

    def edit(self, index: int, text: str) -> None:
        """Change a question, forget what came after it and have it answered."""
        with self._changed:
            self._check_free()
            was_kept = index + 1 < len(self.record.notes) and self._keep_in_trash()
            self.record.edit(index, text)
            self._begin()
            self.note = AS_IT_WAS if was_kept else self.note

    def undo(self) -> str:
        """Take back the last question and its answers; returns the question."""
        with self._changed:
            self._check_free()
            question = self.record.undo()
            self.record.save()
            self._touch()
            return question

    def clear(self) -> None:
        """Begin a new conversation; this one goes to the trash."""
        with self._changed:
            self._check_free()
            self._keep_in_trash()
            self.record.clear()
            self.problems, self.context, self.note = (), (0, 0), ""
            self.record.save()
            self._touch()

    def put_back(self, entry: Path) -> None:
        """Go on with a conversation of the trash, which lies in the folder `entry`; raises QloraUiError where another is under way."""
        with self._changed:
            self._check_free()
            saved = read_json(next(entry.glob("*.json"), entry / "gone"))
            if saved is None:
                raise QloraUiError("This is not in the trash any more.", fix="Look at the list again", code="trash-missing")
            if self.record.history.turns:
                fix = "“Clear” there first; that one goes to the trash, too"
                raise QloraUiError("There is a conversation on the Chat tab.", why="It would be replaced", fix=fix, code="trash-taken")
            system = self.record.history.system
            self.record.take(saved)
            self.record.history.system = system or self.record.history.system
            self.record.save()
            self._touch()
            discard(entry)

    def stop(self) -> None:
        """End the answer within a token; what is being loaded is loaded to its end."""
        with self._changed:
            self._wants_stop = True
            if self.busy == "answering":
                self._service.chat.stop()
            self._touch()

    def unload(self) -> int:
        """Free the memory that the model takes; returns the bytes."""
        if not self._service.has_chat:
            return 0
        self.stop()
        freed = int(self._service.chat.unload())
        with self._changed:
            self._touch()
        return freed

    def give_way(self) -> None:
        """Free the memory for a run, unless an answer is being given; the next question loads the model again."""
        with self._changed:
            if self.busy or self._service.chat.loaded() is None:
                return
            self.note = "The model left the memory to a training run. The next question loads it again, if there is room beside the run."
            self._service.card.free("chat")
            self._touch()

    def keep(self, index: int, side: str, text: str = "") -> None:
        """Save a turn as a row to learn from, with `text` in place of the answer where it was corrected."""
        with self._changed:
            turns = self.record.history.turns
            if not 0 <= index < len(turns) or side not in turns[index].answers:
                raise QloraUiError("That answer is not there any more.", fix="Look at the page again.", code="stale-page")
            answer = self.record.notes[index].answers.setdefault(side, Answer())
            if not text.strip() and not answer.stopped_by and index + 1 == len(turns):
                self._check_free()  # it is asked again, on another page: half an answer is none
            if answer.is_kept and not text.strip():
                return  # a double click
            row = self.record.row(index, side, text.strip() or turns[index].answers[side])
            keep_row(row, self._service.workspace, self.record.history.tools)
            answer.is_kept = True
            self.record.save()
            self.note = f"Kept as a row to learn from. “{KEPT_ROWS_WORDS}” on the Data tab adds all of them to a run."
            self._touch()

    def ask_unseen_row(self) -> None:
        """Ask the question of the next row that the run never trained on, in a fresh conversation: a row knows of no other."""
        with self._changed:
            if self.busy and self.record.notes and self.record.notes[-1].reference:
                return  # a double click
            self._check_free()
            if self.who is None or self.who.run_id is None:
                raise QloraUiError("A base model has no held-back rows.", fix="Choose a run.", code="no-held-back-rows")
            rows = held_back_rows(self._service.workspace, self.who.run_id)
            if not rows:
                raise QloraUiError(
                    "This run held no rows back.", fix="Set “Held back for checking” above 0 for the next run.", code="no-rows"
                )
            row = rows[self._next_row % len(rows)]
            self._next_row += 1
            was_kept = bool(self.record.first_own_question)
            self.clear()
            # The adapter learned to answer after it; without it this would be another question.
            if row.system:
                self.record.history.system = row.system[:SYSTEM_CHARACTERS]
            self.record.history.tools = row.tools
            self.say(row.question, reference=row.answer)
            self.note = AS_IT_WAS if was_kept else self.note

    # The answering thread --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._changed:
            self.is_chosen = self.is_chosen or bool(self.who and self.who.run_id)
            self.busy, self.problems, self._wants_stop, self.note = "loading", (), False, ""
            self.doing = ("Getting ready", None)
            # The answer may take minutes, and an app that is killed in them must not take the question with it.
            self.record.save()
            self._touch()
        threading.Thread(target=self._work, name="chat-desk", daemon=True).start()

    def _work(self) -> None:
        problems: tuple[Problem, ...] = ()
        try:
            _, problems = attempt(self._load_and_answer, "chat")
        except Cancelled:
            pass
        finally:
            with self._changed:
                self.problems = problems
                self.busy, self.doing = "", ("", None)
                self.record.save()
                self._touch()

    def _load_and_answer(self) -> None:
        self._load()
        if not self._wants_stop:
            self._answer()
        self._count()

    def _load(self) -> None:
        with self._changed:
            target = self.who or ChatTarget()
            self.doing = ("Starting the engine", None)
            self._touch()
        chat = self._service.chat
        loaded = chat.loaded()
        if loaded is None or loaded.target != target:
            loaded = chat.load(target, self._say)
        with self._changed:
            self.note = loaded.warning or self.note
            self._touch()

    def _answer(self) -> None:
        sampling = self.record.sampling
        with self._changed:
            sides = self.sides
            questions = self.record.history.questions(sides)
            self.busy, self.doing = "answering", ("", None)
            notes = self.record.notes[-1]
            notes.answers.update({side: Answer() for side in sides})
            self._touch()
        for delta in self._service.chat.stream(questions, sampling, sides, self.record.history.tools):
            with self._changed:
                self.record.history.add(delta.side, delta.text)
                answer = notes.answers[delta.side]
                answer.num_tokens, answer.tokens_per_s, answer.first_token_s = delta.num_tokens, delta.tokens_per_s, delta.first_token_s
                answer.stopped_by = delta.stopped_by
                self._touch()

    def _count(self) -> None:
        if self.record.history.turns[-1].asked_of != self.record.history.talks_to:
            return  # somebody else was chosen meanwhile
        history = self.record.history
        counts = [self._service.chat.count_tokens(history.messages(side), history.tools) for side in self.sides]
        with self._changed:
            self.context = max(counts, default=(0, 0))

    def _say(self, what: str, share: float | None) -> None:
        with self._changed:
            self.doing = (what, share)
            self._touch()

    # Small things ----------------------------------------------------------------------------------------------------

    def _keep_in_trash(self) -> bool:
        """Whether there was something to keep: nobody types a conversation again, but the question of a held-back row comes again."""
        question = self.record.first_own_question
        if not question:
            return False
        workspace, number = self._service.workspace, len(self.record.notes)
        file = workspace.temp / f"conversation-{secrets.token_hex(4)}.json"
        write_json(file, self.record.said())
        name = f"{end_cut(' '.join(question.split()), 60)} ({number:,} question{'s' if number != 1 else ''})"
        throw_away(file, workspace.trash, kind="conversation", name=name, stem="conversation", place=CONVERSATION)
        return True

    def _turn_to(self, who: ChatTarget) -> None:
        if who != self.who:
            self.context = (0, 0)
        # What is told of the conversation before stays over the first proposal.
        self.note = "" if self.who is not None else self.note
        self.who, self.problems = who, ()
        self.record.history.talks_to = who.key
        self._next_row = 0
        self._take_system(who)
        self._touch()

    def _take_system(self, who: ChatTarget) -> None:
        """Begin as the run's rows begin: without their system prompt its answers are others. One that somebody wrote stays."""
        history = self.record.history
        learned = shared_system(self._service.workspace, who.run_id)[:SYSTEM_CHARACTERS] if who.run_id else ""
        goes_on = bool(history.turns) and history.turns[-1].asked_of == who.key
        if not goes_on and history.system.strip() in ("", self._learned_system):
            history.system = learned
            self.note = self.note or (LEARNED_SYSTEM if learned else "")
        self._learned_system = learned

    def _check_free(self) -> None:
        if self.busy:
            raise QloraUiError("An answer is being given.", fix="Stop it first, or wait.", code="chat-busy")

    def _touch(self) -> None:
        self.version += 1
        self._changed.notify_all()
