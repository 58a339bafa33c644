"""Downloads of models, one at a time, in the background: they belong to the app and not to a page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from qlora_ui.base.errors import Problem, QloraUiError
from qlora_ui.base.progress import Cancelled
from qlora_ui.models.hub_download import download
from qlora_ui.ui.handler import attempt


@dataclass(frozen=True, slots=True)
class Download:
    """How far the latest download is."""

    model_id: str
    what: str = ""
    share: float | None = None
    state: str = "running"
    """running, done, stopped or failed."""
    problems: tuple[Problem, ...] = ()


class Downloads:
    """The download that runs, or the last one that ran."""

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done = on_done
        self._lock = threading.Lock()
        self._latest: Download | None = None
        self._cancelled = threading.Event()

    def latest(self) -> Download | None:
        """The running or last download; None before the first."""
        return self._latest

    def start(self, model_id: str, revision: str | None) -> None:
        """Begin a download; raises QloraUiError while another one runs."""
        with self._lock:
            if self._latest is not None and self._latest.state == "running":
                if self._latest.model_id == model_id:
                    return
                raise QloraUiError(
                    f"{self._latest.model_id} is being downloaded.", fix="Wait until it is done, or stop it first", code="download-busy"
                )
            self._cancelled = threading.Event()
            self._latest = Download(model_id, f"Asking the Hub for {model_id}")
        threading.Thread(target=self._work, args=(model_id, revision, self._cancelled), name="download", daemon=True).start()

    def cancel(self) -> None:
        """Stop the download; what came is kept and the next one goes on from there."""
        self._cancelled.set()

    def _work(self, model_id: str, revision: str | None, cancelled: threading.Event) -> None:
        def progress(what: str, share: float | None) -> None:
            self._latest = Download(model_id, what, share)

        try:
            _, problems = attempt(lambda: download(model_id, revision, progress, cancelled.is_set), "download")
            is_here = Download(model_id, f"{model_id} is on this computer", 1.0, "done")
            self._latest = Download(model_id, "", None, "failed", problems) if problems else is_here
        except Cancelled:
            self._latest = Download(model_id, "Stopped. What came is kept.", None, "stopped")
        finally:
            self._on_done()
