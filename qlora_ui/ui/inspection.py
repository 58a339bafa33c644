"""Questions that take a while, asked in the background: the page stays quick, the answer is kept and drawn when it comes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from qlora_ui.base.errors import Problem, QloraUiError
from qlora_ui.base.progress import Cancelled, IsCancelled, OnProgress
from qlora_ui.settings.sections import DataSection
from qlora_ui.ui.handler import log_bug

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

    @property
    def is_done(self) -> bool:
        """Whether answer and problems are final."""
        return self.done.is_set()


class Inquiry(Generic[T]):
    """Answers questions by key, each once; only the newest question is worked on, older ones are given up."""

    def __init__(self, name: str, on_news: Callable[[], None]) -> None:
        self._name = name
        self._on_news = on_news
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, Pending[T]] = OrderedDict()

    def ask(self, key: Hashable, work: Callable[[OnProgress, IsCancelled], T], patience_s: float = PATIENCE_S) -> Pending[T]:
        """The pending answer of `work`, waited for no longer than `patience_s` seconds; an equal key asks the same question."""
        with self._lock:
            pending = self._known.get(key)
            if pending is None or pending.is_cancelled:
                for other in self._known.values():
                    other.is_cancelled = other.is_cancelled or not other.is_done
                pending = self._known[key] = Pending(what="Reading")
                threading.Thread(target=self._work, args=(work, pending), name=self._name, daemon=True).start()
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        pending.done.wait(patience_s)
        return pending

    def _work(self, work: Callable[[OnProgress, IsCancelled], T], pending: Pending[T]) -> None:
        told_at = time.monotonic()

        def progress(what: str, share: float | None) -> None:
            nonlocal told_at
            pending.what, pending.share = what, share
            if time.monotonic() - told_at > PROGRESS_S:
                told_at = time.monotonic()
                self._on_news()

        try:
            pending.answer = work(progress, lambda: pending.is_cancelled)
        except Cancelled:
            pending.is_cancelled = True
        except QloraUiError as error:
            pending.problems = error.problems
        except Exception as error:  # a thread's boundary: the page must hear that it ended
            bug_id = log_bug(error, self._name)
            pending.problems = (Problem("", f"the app made a mistake here; its log has the details under {bug_id}", code="bug"),)
        finally:
            pending.done.set()
            self._on_news()


def data_key(data: DataSection) -> tuple[str, ...]:
    """The data settings with the change times of their files: a file that was edited is read anew."""
    stamps = []
    for source in data.sources:
        try:
            stat = Path(source.id).expanduser().stat()
            stamps.append(f"{stat.st_mtime_ns}-{stat.st_size}")
        except (OSError, ValueError):
            stamps.append("")
    return (data.model_dump_json(), *stamps)
