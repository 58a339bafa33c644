"""Questions that take a while, asked in the background: the page stays quick, the answer is kept and drawn when it comes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qlora_ui.base.errors import Problem
from qlora_ui.base.files import typed_path
from qlora_ui.base.progress import Cancelled, IsCancelled, OnProgress
from qlora_ui.settings.sections import DataSection
from qlora_ui.ui.handler import attempt

PATIENCE_S = 0.4
"""A page waits this long for an answer before it says that it is being worked on."""
PROGRESS_S = 1.0
"""Pages are told of progress at most this often."""
KEPT = 16

T = TypeVar("T")


@dataclass(slots=True)
class Pending(Generic[T]):
    """A question and, once `is_done`, its answer or what stood in its way."""

    answer: T | None = None
    problems: tuple[Problem, ...] = ()
    what: str = ""
    """What is being done, in words, while it is not done."""
    share: float | None = None
    done: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    is_stopped: bool = False
    """The user stopped it: it is not asked again until the user wants it."""
    edited_at: float = 0.0
    """Of the pages that ask it, when one was last edited."""
    _since: tuple[float, float] = field(default=(0.0, 0.0), init=False)
    """When the present piece of the work began, and its share then: several files are read one after the other."""

    @property
    def is_done(self) -> bool:
        """Whether answer and problems are final."""
        return self.done.is_set()

    def tell(self, what: str, share: float | None) -> None:
        """Take how far the work is."""
        if share is not None and (self.share is None or share < self.share):
            self._since = (time.monotonic(), share)
        self.what, self.share = what, share

    def seconds_left(self) -> float | None:
        """From the pace of the present piece; None in its first second and where its share is not known."""
        began, first = self._since
        took = time.monotonic() - began
        if self.is_done or self.share is None or self.share <= first or took < 1:
            return None
        return took * (1 - self.share) / (self.share - first)


class Inquiry(Generic[T]):
    """Answers questions by key, each once. One is worked on at a time: that of the page that was edited last; others are given up for it,
    or wait.
    """

    def __init__(self, name: str, on_news: Callable[[], None]) -> None:
        self._name = name
        self._on_news = on_news
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, Pending[T]] = OrderedDict()

    def ask(
        self,
        key: Hashable,
        work: Callable[[OnProgress, IsCancelled], T],
        patience_s: float = PATIENCE_S,
        *,
        edited_at: float | None = None,
    ) -> Pending[T]:
        """The pending answer of `work`, waited for no longer than `patience_s` seconds; an equal key asks the same question.

        `edited_at` says when the page that asks was last edited, in monotonic seconds; None is now. A page that lies open with other
        settings asks again whenever it is drawn anew, and does not take the work from the one that somebody is at.
        """
        edited_at = time.monotonic() if edited_at is None else edited_at
        with self._lock:
            pending = self._known.get(key)
            if pending is None or (pending.is_cancelled and not pending.is_stopped):
                others = [other for other in self._known.values() if not other.is_done and not other.is_cancelled]
                if any(other.edited_at > edited_at for other in others):
                    # Kept, as one that is given up and asked anew, so that the user can stop it.
                    waiting = self._known[key] = Pending(what="Waiting for what another page asked", is_cancelled=True)
                    return waiting
                for other in others:
                    other.is_cancelled = True
                pending = self._known[key] = Pending(what="Reading")
                threading.Thread(target=self._work, args=(work, pending), name=self._name, daemon=True).start()
            pending.edited_at = max(pending.edited_at, edited_at)
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        pending.done.wait(patience_s)
        return pending

    def known(self, key: Hashable) -> T | None:
        """The answer where it has been found; asks nothing."""
        with self._lock:
            pending = self._known.get(key)
        return pending.answer if pending is not None and pending.is_done else None

    def stop(self) -> None:
        """Give up what is being worked on, as the user wishes; pages see it at once, the work ends at its next look."""
        with self._lock:
            for pending in self._known.values():
                if not pending.is_done:
                    pending.is_cancelled = pending.is_stopped = True
                    pending.done.set()
        self._on_news()

    def forget_stopped(self) -> None:
        """What was stopped is asked anew by the next `ask`."""
        with self._lock:
            for key in [key for key, pending in self._known.items() if pending.is_stopped]:
                del self._known[key]
        self._on_news()

    def _work(self, work: Callable[[OnProgress, IsCancelled], T], pending: Pending[T]) -> None:
        told_at = time.monotonic()

        def progress(what: str, share: float | None) -> None:
            nonlocal told_at
            pending.tell(what, share)
            if time.monotonic() - told_at > PROGRESS_S:
                told_at = time.monotonic()
                self._on_news()

        try:
            pending.answer, pending.problems = attempt(lambda: work(progress, lambda: pending.is_cancelled), self._name)
        except Cancelled:
            pending.is_cancelled = True
        else:
            pending.is_cancelled = pending.is_stopped = False  # It was done before it saw that it should stop.
        finally:
            pending.done.set()
            self._on_news()


def data_key(data: DataSection) -> tuple[str, ...]:
    """The data settings with the change times of their files: a file that was edited is read anew."""
    stamps = []
    for source in data.sources:
        try:
            stat = typed_path(source.id).stat()
            stamps.append(f"{stat.st_mtime_ns}-{stat.st_size}")
        except (OSError, ValueError):
            stamps.append("")
    return (data.model_dump_json(), *stamps)
