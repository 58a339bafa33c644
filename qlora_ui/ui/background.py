"""Work of minutes that a page starts and any page can watch and cancel: an evaluation, an export."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qlora_ui.base.errors import Problem, QloraUiError
from qlora_ui.base.progress import Cancelled, IsCancelled, OnProgress
from qlora_ui.ui.handler import attempt

Job = Callable[[OnProgress, IsCancelled], Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the work is."""

    key: str = ""
    """What it is for: a run's id, with what is made of it after a “|”."""
    is_running: bool = False
    what: str = ""
    share: float | None = None
    began: float = 0.0
    is_cancelling: bool = False
    problems: tuple[Problem, ...] = ()
    result: Any = None

    @property
    def run_id(self) -> str:
        """The run that it is about."""
        return self.key.partition("|")[0]

    def seconds_left(self, now: float) -> float | None:
        """From the pace so far; None before a tenth is done."""
        if not self.is_running or self.share is None or self.share < 0.1:
            return None
        return (now - self.began) * (1 - self.share) / self.share


class Background:
    """One piece of work at a time, in a thread of its own; safe to use from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._cancelled = threading.Event()
        self._progress = Progress()
        self._asked: Any = None

    def progress(self) -> Progress:
        """How it stands, or how the last one ended."""
        with self._lock:
            return self._progress

    def finish(self, key: str, job: Job) -> Any:
        """`start` it and wait for its result; None where it was cancelled or failed, which `progress` tells."""
        thread = self.start(key, job)
        thread.join()
        progress = self.progress()
        return progress.result if progress.key == key else None

    def press(self, key: str, job: Job, asked: Any = None) -> None:
        """`start` it, unless this very work, by its key and what was `asked`, is under way: then a button was pressed twice."""
        with self._lock:
            is_same = self._progress.is_running and not self._progress.is_cancelling and (key, asked) == (self._progress.key, self._asked)
        if not is_same:
            self.start(key, job, asked)

    def start(self, key: str, job: Job, asked: Any = None) -> threading.Thread:
        """Begin, in the thread that is returned; raises QloraUiError while another piece is being worked on."""
        with self._lock:
            if self._is_closed:
                raise QloraUiError("The app is closing.", fix="Start it again", code="closing")
            if self._progress.is_running:
                raise QloraUiError(f"Another {self.name} is running.", fix="Wait for it, or cancel it.", code="busy")
            self._cancelled.clear()
            self._asked = asked
            self._progress = Progress(key, True, "Getting ready", None, time.time())
            self._thread = threading.Thread(target=self._work, args=(job,), name=self.name, daemon=True)
            self._thread.start()
            return self._thread

    def cancel(self) -> None:
        """Ask it to end; it does at its next look."""
        self._cancelled.set()
        with self._lock:
            self._progress = replace(self._progress, is_cancelling=self._progress.is_running)

    def close(self) -> None:
        """Ask it to end, for the end of the app; nothing can be begun any more."""
        with self._lock:
            self._is_closed = True
        self.cancel()

    @property
    def is_closed(self) -> bool:
        """Whether the app is ending."""
        with self._lock:
            return self._is_closed

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended, so long at most."""
        if self._thread is not None:
            self._thread.join(max(timeout_s, 0.0))

    def _work(self, job: Job) -> None:
        problems: tuple[Problem, ...] = ()
        result = None
        try:
            result, problems = attempt(lambda: job(self._tell, self._cancelled.is_set), self.name)
        except Cancelled:
            pass
        with self._lock:
            self._progress = replace(self._progress, is_running=False, is_cancelling=False, problems=problems, result=result)

    def _tell(self, what: str, share: float | None) -> None:
        with self._lock:
            self._progress = replace(self._progress, what=what, share=share)
