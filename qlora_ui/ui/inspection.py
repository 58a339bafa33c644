"""Looking at the data of a page in the background: the page stays quick, the answer is kept and drawn when it comes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qlora_ui.base.errors import Problem, QloraUiError
from qlora_ui.base.progress import Cancelled
from qlora_ui.data.load import inspect
from qlora_ui.data.report import DataReport
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.ui.handler import log_bug

PATIENCE_S = 0.4
"""A page waits this long for an answer before it says that the data is being read."""
KEPT = 16


@dataclass(slots=True)
class Inspection:
    """One look at one choice of data; `is_done` tells whether report or problems are final."""

    report: DataReport | None = None
    problems: tuple[Problem, ...] = ()
    what: str = ""
    """What is being done, in words, while it is not done."""
    share: float | None = None
    done: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False

    @property
    def is_done(self) -> bool:
        return self.done.is_set()


class Inspector:
    """Inspects the data section of settings, each choice once; only the newest choice is worked on."""

    def __init__(self, workspace: Workspace, on_done: Callable[[], None]) -> None:
        self._workspace = workspace
        self._on_done = on_done
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Inspection] = OrderedDict()

    def look(self, data: DataSection, patience_s: float = PATIENCE_S) -> Inspection:
        """The inspection of this choice, waited for no longer than `patience_s` seconds."""
        key = _key(data)
        with self._lock:
            inspection = self._known.get(key)
            if inspection is None or inspection.is_cancelled:
                for other in self._known.values():
                    other.is_cancelled = not other.is_done
                inspection = self._known[key] = Inspection(what="Reading the data")
                threading.Thread(target=self._work, args=(data, inspection), name="inspect-data", daemon=True).start()
            self._known.move_to_end(key)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        inspection.done.wait(patience_s)
        return inspection

    def _work(self, data: DataSection, inspection: Inspection) -> None:
        def progress(what: str, share: float | None) -> None:
            inspection.what, inspection.share = what, share

        try:
            inspection.report = inspect(data, self._workspace, on_progress=progress, is_cancelled=lambda: inspection.is_cancelled)
        except Cancelled:
            inspection.is_cancelled = True
        except QloraUiError as error:
            inspection.problems = error.problems
        except Exception as error:  # a thread's boundary: the page must hear that it ended
            bug_id = log_bug(error, "inspection of data")
            inspection.problems = (Problem("data.sources", f"the data could not be read (fault {bug_id}, see the log)", code="bug"),)
        finally:
            inspection.done.set()
            self._on_done()


def _key(data: DataSection) -> str:
    """The choice, with the change times of its files: a file that was edited is read anew."""
    stamps = []
    for source in data.sources:
        try:
            stat = Path(source.id).expanduser().stat()
            stamps.append(f"{stat.st_mtime_ns}-{stat.st_size}")
        except (OSError, ValueError):
            stamps.append("")
    return "|".join([data.model_dump_json(), *stamps])
