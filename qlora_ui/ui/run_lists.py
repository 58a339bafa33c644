"""All runs as rows and their settings, read once for all pages."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.listing import RunList, RunRow
from qlora_ui.runs.read import RunReaders, RunView
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

FRESH_S = 0.9
"""All pages share one look at the folder within this time."""
KEPT_CONFIGS = 500
READ_S = 0.3
"""A page waits no longer for journals that were not read before; a thread goes on with them."""


class RunLists:
    """The rows and settings that all pages of the app share."""

    def __init__(self, workspace: Workspace, readers: RunReaders) -> None:
        self._workspace = workspace
        self._readers = readers
        self._list = RunList(workspace, readers.view)
        self._lock = threading.Lock()
        self._rows: tuple[float, list[RunRow]] = (0.0, [])
        self._moment: dict[str, RunView] | None = None
        self._reading: threading.Thread | None = None
        self._configs: OrderedDict[str, RunConfig | None] = OrderedDict()

    @property
    def num_unread(self) -> int:
        """Older runs that are not in `rows` yet, or not as they are now."""
        return self._list.num_unread

    def rows(self) -> list[RunRow]:
        """All runs, newest first; some older ones are missing while their journals are read for the first time (`num_unread`)."""
        moment = self._readers.moment
        with self._lock:
            read_at, rows = self._rows
            # Where a page is drawn, the list is of the same moment as everything else on it.
            is_fresh = moment is self._moment if moment is not None else time.monotonic() - read_at <= FRESH_S
            if not is_fresh or not read_at:
                rows = self._list.rows(READ_S)
                self._read_on()
                self._rows, self._moment = (time.monotonic(), rows), moment
            return rows

    def all_rows(self, what: str) -> list[RunRow]:
        """All runs as they are now, to delete `what` they may need; raises QloraUiError while some are still being read."""
        # One may have been started a moment ago.
        self.forget()
        rows = self.rows()
        if self.num_unread:
            fix = "Wait until the list on the Runs tab is whole"
            raise QloraUiError(f"The runs are still being read: one of them may need this {what}.", fix=fix, code="runs-unread")
        return rows

    def _read_on(self) -> None:
        """Read in the background what there was no time for."""
        if self._list.num_unread and (self._reading is None or not self._reading.is_alive()):
            self._reading = threading.Thread(target=self._read, name="read-runs", daemon=True)
            self._reading.start()

    def _read(self) -> None:
        while self._list.read_next():
            pass

    def forget(self) -> None:
        """Look at the folder anew at the next call."""
        with self._lock:
            self._rows = (0.0, self._rows[1])
            self._list.forget()

    def config(self, run_id: str) -> RunConfig | None:
        """The settings of a run, which never change; None where they cannot be read."""
        with self._lock:
            if run_id not in self._configs:
                try:
                    self._configs[run_id] = find_run(self._workspace, run_id).config()
                except (QloraUiError, OSError):
                    # A run that is being made has none in this moment, and what cannot be read may be mended.
                    return None
                while len(self._configs) > KEPT_CONFIGS:
                    self._configs.popitem(last=False)
            return self._configs[run_id]
