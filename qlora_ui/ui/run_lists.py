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


class RunLists:
    """The rows and settings that all pages of the app share."""

    def __init__(self, workspace: Workspace, readers: RunReaders) -> None:
        self._workspace = workspace
        self._readers = readers
        self._list = RunList(workspace, readers.view)
        self._lock = threading.Lock()
        self._rows: tuple[float, list[RunRow]] = (0.0, [])
        self._moment: dict[str, RunView] | None = None
        self._configs: OrderedDict[str, RunConfig | None] = OrderedDict()

    def rows(self) -> list[RunRow]:
        """All runs, newest first."""
        moment = self._readers.moment
        with self._lock:
            read_at, rows = self._rows
            # Where a page is drawn, the list is of the same moment as everything else on it.
            is_fresh = moment is self._moment if moment is not None else time.monotonic() - read_at <= FRESH_S
            if not is_fresh or not read_at:
                rows = self._list.rows()
                self._rows, self._moment = (time.monotonic(), rows), moment
            return rows

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
                except QloraUiError:
                    self._configs[run_id] = None
                while len(self._configs) > KEPT_CONFIGS:
                    self._configs.popitem(last=False)
            return self._configs[run_id]
