"""What charts ask for new points (see ui/chart.py), for all pages together."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import orjson

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.registry import find_run
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.curves import goes_on, new_points

MOST_CURVES = 8
"""Runs whose curves one page may ask for at once."""
KEPT = 32
"""Pages that were drawn in the same moment ask for the same points."""


class Curves:
    """The points of runs since a page's cursors."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers: OrderedDict[tuple[str, ...], bytes] = OrderedDict()

    def ask(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """What was added to each run up to now; all of it where the page has no cursor."""
        runs, cursors = _asked(asked)
        answer = []
        for run_id, cursor in zip(runs, cursors, strict=True):
            try:
                view = self._service.readers.view(find_run(self._service.workspace, run_id))
            except QloraUiError:
                continue  # deleted on another page
            answer.append(new_points(view, cursor))
        return answer

    def ask_quickly(self, asked: Any) -> bytes | None:
        """The same as JSON, up to the last look at the runs: what the page was told of, and no work for the disk.

        None where a page wants more than what was added. Called in the server's own thread only.
        """
        if not isinstance(asked, dict):
            return None
        runs, cursors = _asked(asked)
        views = [self._service.readers.latest(run_id) for run_id in runs]
        seen = [view for view in views if view is not None]
        if len(seen) < len(runs):
            return None
        key = (*(f"{view.id} {view.version}" for view in seen), orjson.dumps(cursors).decode())
        answer = self._answers.get(key)
        if answer is None:
            if not all(goes_on(view, cursor) for view, cursor in zip(seen, cursors, strict=True)):
                return None
            answer = orjson.dumps([new_points(view, cursor) for view, cursor in zip(seen, cursors, strict=True)])
            self._answers[key] = answer
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        return answer


def _asked(asked: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Runs and a cursor for each; both come from a page."""
    runs, cursors = asked.get("runs"), asked.get("cursors")
    runs = [str(run_id) for run_id in runs][:MOST_CURVES] if isinstance(runs, list) else []
    cursors = cursors if isinstance(cursors, list) else []
    return runs, [cursors[place] if place < len(cursors) else None for place in range(len(runs))]
