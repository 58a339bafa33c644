"""The one arbiter of the graphics card: who holds it, for what, and who may work on it now.

Two things are kept apart. *Holding* is having a model in the card's memory (training, chat, evaluation, export); a second
holder is let in only where the newcomer says that both fit. *Turns* are who computes: one at a time, in the order of
asking, so that a chat's answer falls between two training steps and never into one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from qlora_ui.base.errors import RunError

FREE_S = 30.0
"""Longest wait for a chat to end its token and let go."""
NAMES = {"training": "A training run", "chat": "The chat", "evaluation": "An evaluation", "export": "An export"}


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody with a model on the card."""

    who: str
    """training, chat, evaluation or export."""
    what: str
    """What is loaded, in a person's words: a run's name, a model's."""
    since: float
    """Unix seconds."""
    can_free: bool
    """Whether `Card.free` can ask it to let go."""
    run_id: str = ""
    """The run that it works on, where it is one."""

    def sentence(self) -> str:
        """`The chat has a model in memory (SmolLM2-135M).`"""
        return f"{NAMES.get(self.who, self.who)} has a model in memory ({self.what})."


class Turns:
    """A lock that is given in the order of asking; an ordinary one could be taken back by the same thread for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._issued = 0
        self._serving = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, have it inside the block."""
        self._take()
        try:
            yield
        finally:
            self._give()

    def pass_on(self) -> None:
        """Let those who wait go first; called inside one's own turn, between two steps."""
        if self._issued - self._serving > 1:
            self._give()
            self._take()

    def _take(self) -> None:
        with self._changed:
            ticket = self._issued
            self._issued += 1
            self._changed.wait_for(lambda: self._serving == ticket)

    def _give(self) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


class Hold:
    """The right to have a model on the card; a context manager, or given back by hand."""

    def __init__(self, card: Card, holder: Holder, release: Callable[[], object] | None) -> None:
        self.holder = holder
        self._card = card
        self._release = release

    def give_back(self) -> None:
        """Let go; a second call does nothing."""
        self._card._drop(self)

    def ask_to_free(self) -> bool:
        """Ask the holder to let go; False where it cannot be asked."""
        if self._release is None:
            return False
        self._release()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.give_back()


class Card:
    """Holders of the card and their turns; one object for each process, safe to use from any thread."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._changed = threading.Condition()
        self._holds: list[Hold] = []

    def hold(
        self,
        who: str,
        what: str,
        *,
        run_id: str = "",
        wait_s: float = 0.0,
        beside: Collection[str] = (),
        release: Callable[[], object] | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Hold:
        """Take the card for `who` (training, chat, evaluation, export), with `what` as its name for others and the run that it works on.

        `beside` names the kinds of holder in whose company the newcomer fits (the caller has compared the estimate with free
        memory). `release` is called when somebody else asks for the card. Raises RunError (code `card-busy`) naming the
        holder where it is not free within `wait_s` seconds, or `is_cancelled` says to give up.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            while (blocker := self.blocker(beside)) is not None:
                left = deadline - time.monotonic()
                if left <= 0 or is_cancelled():
                    raise RunError(
                        blocker.sentence(),
                        why="There is room for one of them at a time",
                        fix="Free it or wait until it is done" if blocker.can_free else "Wait until it is done",
                        code="card-busy",
                    )
                self._changed.wait(min(left, 0.2))
            hold = Hold(self, Holder(who, what, time.time(), release is not None, run_id), release)
            self._holds.append(hold)
            return hold

    def hold_after_chat(self, who: str, what: str, *, run_id: str, is_cancelled: Callable[[], bool]) -> Hold:
        """`hold`, for which a chat that is alone there gives the card up: it loads again by itself with the next question."""
        is_alone = all(holder.who == "chat" for holder in self.holders())
        wait_s = FREE_S if is_alone and self.free("chat") else 0.0
        return self.hold(who, what, run_id=run_id, wait_s=wait_s, is_cancelled=is_cancelled)

    def holder(self) -> Holder | None:
        """Who has held the card longest; None where it is free."""
        with self._changed:
            return self._holds[0].holder if self._holds else None

    def holders(self) -> tuple[Holder, ...]:
        """Everybody with a model on the card."""
        with self._changed:
            return tuple(hold.holder for hold in self._holds)

    def free(self, who: str) -> bool:
        """Ask the holder of that kind to let go; True where it was asked. It lets go in its own time."""
        with self._changed:
            holds = [hold for hold in self._holds if hold.holder.who == who]
        return any([hold.ask_to_free() for hold in holds])

    def blocker(self, beside: Collection[str] = ()) -> Holder | None:
        """Who keeps a newcomer that fits `beside` those kinds from the card; None where nobody does."""
        with self._changed:
            return next((hold.holder for hold in self._holds if hold.holder.who not in beside), None)

    def _drop(self, hold: Hold) -> None:
        with self._changed:
            if hold in self._holds:
                self._holds.remove(hold)
                self._changed.notify_all()
