"""All runs of a workspace as rows of a table, fast with thousands of them.

A row is read from a run's journal once and kept, in memory and in the workspace's cache folder, until the journal or the
user's notes change. What depends on now (is a running one's owner alive?) is never kept. Runs that ended long ago are looked at
every few seconds only: a page asks for the list each second, beside a training.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import read_json, write_text
from qlora_ui.runs.events import StepLogged
from qlora_ui.runs.moved import found_here, places
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig, option_by_path

SPARK_POINTS = 32
LOOK_AT_ALL_S = 5.0
NEWEST = 40
"""Of so many runs every change is seen at once, as of all that have not ended."""
SAVE_S = 5.0
_CACHE = "run-rows.json"
_KIND = 5
"""Of the rows: those that an earlier version of the app has written down are read again."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a list."""

    id: str
    name: str
    status: Status
    model: str
    created: float
    step: int
    num_steps: int | None
    final_loss: float | None
    best_eval_loss: float | None
    tokens_per_s: float
    peak_bytes: int | None
    predicted_bytes: int | None
    elapsed_s: float
    has_adapter: bool
    sparkline: tuple[float, ...]
    """Up to 32 points of the training loss."""
    notes: str = ""
    tags: tuple[str, ...] = ()
    measured_bytes: int | None = None
    """The highest point of the memory line, as the Train tab says it beside the prediction."""
    has_checkpoint: bool = False
    problem: str = ""
    """Why it, or its settings, cannot be read; a run without settings cannot be continued."""

    @property
    def can_resume(self) -> bool:
        return self.status.can_resume and not self.problem

    def as_dict(self) -> dict[str, Any]:
        """The row as `runs --json` prints it."""
        return {**asdict(self), "status": self.status.value}


class RunList:
    """The rows of a workspace; one object for each process, safe to use from any thread."""

    def __init__(self, workspace: Workspace, view: Callable[[RunDir], RunView] = read_run) -> None:
        """`view` reads a run; one that remembers (RunReaders.view) spares reading a live run from its start again and again."""
        self._workspace = workspace
        self._view = view
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, RunRow]] | None = None
        self._order: list[RunDir] = []
        self._folder = -1
        self._all_seen_at = self._saved_at = -math.inf
        self._unread: deque[tuple[RunDir, Callable[[RunDir], RunView]]] = deque()

    def forget(self) -> None:
        """Look at every run at the next call."""
        with self._lock:
            self._all_seen_at = -math.inf

    def rows(self, within_s: float = math.inf) -> list[RunRow]:
        """All runs, newest first.

        Those whose journals cannot be read within `within_s` seconds are left out, or stand as they last were, until `read_next` has read
        them: after an update that reads all of them again, a year's take a minute.
        """
        with self._lock:
            if self._rows is None:
                self._rows = self._load()
            until = time.monotonic() + within_s
            self._unread.clear()
            known, changed, rows = self._rows, False, []
            is_all = self._look_at_folder()
            for place, run in enumerate(self._order):
                kept = known.get(run.id)
                is_looked_at = is_all or kept is None or place < NEWEST or not _is_over(kept[1].status)
                if is_looked_at and (kept is None or kept[0] != _version(run.version_on_disk())):
                    # What ended long ago is read for its row only: in memory all runs together would take gigabytes.
                    look = self._view if kept is not None or place < NEWEST else read_run
                    if time.monotonic() > until:
                        self._unread.append((run, look))
                    else:
                        try:
                            kept = known[run.id] = _dated_row(look(run))
                        except OSError as error:
                            # One of somebody else's does not hide the others; it is not kept, as its permissions may change.
                            rows.append(_unreadable_row(run, error))
                            continue
                        # A live run changes every second; it is written down when it has ended.
                        changed = changed or not kept[1].status.is_live
                if kept is None:
                    continue
                version, row = kept
                if row.status.is_live or row.status is Status.CRASHED:
                    row = replace(row, status=_live_status(run, version, row.status))
                rows.append(row)
            if self._unread:
                self._all_seen_at = -math.inf
            gone = known.keys() - {row.id for row in rows} if is_all else set()
            for run_id in gone:
                del known[run_id]
            if changed or gone:
                self._save()
            return rows

    @property
    def num_unread(self) -> int:
        """Runs that `rows` had no time for."""
        return len(self._unread)

    def read_next(self) -> bool:
        """Read one of them while others ask for the rows; False where none is left."""
        with self._lock:
            if not self._unread:
                return False
            run, look = self._unread.popleft()
            kept = (self._rows or {}).get(run.id)
        if kept is not None and kept[0] == _version(run.version_on_disk()):
            return True  # `rows` was asked while it was read, and found it missing
        try:
            row = _dated_row(look(run))
        except OSError as error:
            row = "", _unreadable_row(run, error)  # `rows` tries it again
        with self._lock:
            if self._rows is not None:
                self._rows[run.id] = row
                if time.monotonic() - self._saved_at > SAVE_S or not self._unread:
                    self._save()
        return True

    def _look_at_folder(self) -> bool:
        """Whether every run is to be looked at: some came or went, or it was long ago."""
        folder = self._workspace.runs.stat().st_mtime_ns
        if folder == self._folder and time.monotonic() - self._all_seen_at < LOOK_AT_ALL_S:
            return False
        self._folder, self._all_seen_at = folder, time.monotonic()
        self._order = list_runs(self._workspace, {run.id: run for run in self._order})
        return True

    def _load(self) -> dict[str, tuple[str, RunRow]]:
        stored = read_json(self._workspace.cache / _CACHE)
        rows, root = {}, self._workspace.root
        earlier = [place for place in places(root) if place != str(root)]
        for run_id, kept in stored.items() if isinstance(stored, dict) else ():
            try:
                version, values = kept
                row = RunRow(
                    **{**values, "status": Status(values["status"]), "tags": tuple(values["tags"]), "sparkline": tuple(values["sparkline"])}
                )
            except (TypeError, ValueError, KeyError):
                continue  # of another version: read again
            # A base that lies in the workspace was moved with it.
            rows[run_id] = (version, replace(row, model=found_here(row.model, root, earlier)) if earlier else row)
        return rows

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        text = json.dumps({run_id: [version, row.as_dict()] for run_id, (version, row) in (self._rows or {}).items()}, ensure_ascii=False)
        try:
            write_text(self._workspace.cache / _CACHE, text)
        except OSError:
            # A full disk must not hide the list; the rows are read again next time.
            return


def _dated_row(view: RunView) -> tuple[str, RunRow]:
    """The row and what it is of: not the files as they are by now, which may say more than this picture of the run."""
    return _version(view.on_disk), row_of(view)


def row_of(view: RunView) -> RunRow:
    """The row of a run in a list."""
    ended = view.ended
    best = view.best_eval
    return RunRow(
        id=view.id,
        name=view.name,
        status=view.status,
        model=view.config.model.id if view.config else "",
        created=view.created,
        step=view.step,
        num_steps=view.num_steps,
        final_loss=ended.final_loss if ended and ended.final_loss is not None else view.steps[-1].loss if view.steps else None,
        best_eval_loss=best.loss if best else None,
        tokens_per_s=ended.tokens_per_s if ended else view.steps[-1].tokens_per_s if view.steps else 0.0,
        peak_bytes=view.peak_bytes,
        predicted_bytes=view.planned.predicted_bytes if view.planned else None,
        elapsed_s=view.elapsed_s if not view.status.is_live else 0.0,
        has_adapter=view.has_adapter,
        sparkline=tuple(event.loss for event in _thinned(view.steps)),
        notes=view.notes,
        tags=view.tags,
        measured_bytes=view.peak_measured_bytes,
        has_checkpoint=view.has_checkpoint,
        problem=view.problem,
    )


def _unreadable_row(run: RunDir, error: OSError) -> RunRow:
    """What can be said of a run that may not be read."""
    return RunRow(
        id=run.id,
        name=run.default_name,
        status=Status.UNREADABLE,
        model="",
        created=run.made_at,
        step=0,
        num_steps=None,
        final_loss=None,
        best_eval_loss=None,
        tokens_per_s=0.0,
        peak_bytes=None,
        predicted_bytes=None,
        elapsed_s=0.0,
        has_adapter=False,
        sparkline=(),
        problem=f"{error.filename or run.path} cannot be read: {error.strerror or error}. Give yourself the right to it",
    )


def compare(first: RunConfig, *others: RunConfig, only_different: bool = True) -> list[tuple[str, tuple[Any, ...]]]:
    """Option path and its value in each run, for a table that lays runs side by side."""
    configs = (first, *others)
    rows = [(path, tuple(config.get(path) for config in configs)) for path in option_by_path()]
    return [(path, values) for path, values in rows if not only_different or any(value != values[0] for value in values)]


def rename(run: RunDir, name: str) -> None:
    """Give a run another name; raises RunError for an empty one."""
    cleaned = " ".join(name.split())[:80]
    if not cleaned:
        raise RunError("A run needs a name.", fix="Write a word or two", where="name", code="run-name")
    run.write_about(name=cleaned)


def _is_over(status: Status) -> bool:
    return status in (Status.DONE, Status.STOPPED, Status.FAILED)


def _version(on_disk: str) -> str:
    """Of a row; an adapter comes with an event, and needs no look of its own."""
    return f"{_KIND}.{on_disk}"


def _live_status(run: RunDir, version: str, status: Status) -> Status:
    if run.owner_is_alive():
        return Status.RUNNING if status is Status.CRASHED else status
    # What ends its run writes that down before it goes: the next look reads it.
    return Status.CRASHED if version == _version(run.version_on_disk()) else status


def _thinned(values: Sequence[StepLogged]) -> Sequence[StepLogged]:
    if len(values) <= SPARK_POINTS:
        return values
    return tuple(values[round(place * (len(values) - 1) / (SPARK_POINTS - 1))] for place in range(SPARK_POINTS))
