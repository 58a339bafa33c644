"""What charts ask for new points (see ui/chart.py), for all pages together."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import orjson

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.read import RunView
from qlora_ui.runs.registry import find_run
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.curves import goes_on, new_points

MOST_CURVES = 8
"""Runs whose curves one page may ask for at once."""
KEPT = 32
"""Pages that were drawn in the same moment ask for the same points."""


TAIL_S = 3.0
"""Pages poll each second; one that missed more than this asks."""
TAIL_POINTS = 1_000


@dataclass(slots=True)
class _Tail:
    """What was added to a run at its last drawings."""

    cursor: dict[str, Any]
    pieces: deque[tuple[float, dict[str, Any]]] = field(default_factory=deque)


class Curves:
    """The points of runs since a page's cursors."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self._lock = threading.Lock()

    def tail(self, view: RunView) -> dict[str, Any] | None:
        """The end of a run's curves, to be sent with the run's other views, so that a page that keeps up need not ask.

        Each piece goes on from a cursor, `since`; a page joins in where it has that cursor. None before a page asked for the run.
        """
        with self._lock:
            tail = self._tails.get(view.id)
            if tail is None:
                return None
            if not goes_on(view, tail.cursor):
                del self._tails[view.id]
                return None
            new = new_points(view, tail.cursor)
            now = time.monotonic()
            if new["cursor"] != tail.cursor:
                tail.pieces.append((now, {"since": tail.cursor, "cursor": new["cursor"], "series": new["series"]}))
                tail.cursor = new["cursor"]
            while tail.pieces and (now - tail.pieces[0][0] > TAIL_S or _num_points(tail) > TAIL_POINTS):
                tail.pieces.popleft()
            said = {name: new[name] for name in ("id", "cursor", "rules", "end", "marks", "text")}
            return {**said, "pieces": [piece for _, piece in tail.pieces]}

    def _begin_tail(self, run_id: str, cursor: dict[str, Any]) -> None:
        with self._lock:
            self._tails.setdefault(run_id, _Tail(cursor))
            while len(self._tails) > MOST_CURVES:
                self._tails.popitem(last=False)

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
            self._begin_tail(view.id, answer[-1]["cursor"])
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
            pieces = [new_points(view, cursor) for view, cursor in zip(seen, cursors, strict=True)]
            for piece in pieces:
                self._begin_tail(piece["id"], piece["cursor"])
            answer = self._answers[key] = orjson.dumps(pieces)
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        return answer


def _num_points(tail: _Tail) -> int:
    return sum(len(series["x"]) for _, piece in tail.pieces for series in piece["series"].values())


def _asked(asked: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Runs and a cursor for each; both come from a page."""
    runs, cursors = asked.get("runs"), asked.get("cursors")
    runs = [str(run_id) for run_id in runs][:MOST_CURVES] if isinstance(runs, list) else []
    cursors = cursors if isinstance(cursors, list) else []
    return runs, [cursors[place] if place < len(cursors) else None for place in range(len(runs))]
