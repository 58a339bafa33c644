"""What waits on the disk: the order of the queue, and the runs that an earlier app left.

That a run waits stands on its journal; queue.json only keeps the order that the user gave.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from qlora_ui.base.files import read_json, write_json
from qlora_ui.runs.events import Ended, Queued, Started, from_line
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace

TAIL_BYTES = 4096
"""A run that waits has little after its last `Queued`; thousands of journals are looked at when an app starts."""
_ORDER = "queue.json"


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier app left."""

    working: tuple[RunDir, ...]
    """Jobs in processes of their own, on this machine, that still work, or are about to begin."""
    waiting: tuple[RunDir, ...]
    """Runs that wait, next one first."""
    crashed: tuple[RunDir, ...]
    """Runs whose job is gone."""


def read_order(workspace: Workspace) -> list[str]:
    """The ids of the waiting runs as they were last written down, next one first."""
    try:
        stored = read_json(workspace.root / _ORDER)
    except OSError:
        return []
    return [name for name in stored if isinstance(name, str)] if isinstance(stored, list) else []


def write_order(workspace: Workspace, ids: list[str]) -> None:
    """Write the ids of the waiting runs down."""
    write_json(workspace.root / _ORDER, ids)


def find_left(workspace: Workspace, order: list[str]) -> Left:
    """Look through all runs for what an earlier app left; those that wait and stand not in `order` come first."""
    working, waiting, crashed = [], [], []
    for run in reversed(list_runs(workspace)):
        try:
            if not (run.has_owner() or _may_wait(run)):
                continue
            status = read_run(run).status
        except OSError:
            continue  # somebody else's, whose permissions are not ours
        is_starting = status is Status.QUEUED and run.owner_is_alive()
        if status is Status.QUEUED and not is_starting and run.config_path.is_file():
            waiting.append(run)
        elif status is Status.CRASHED:
            crashed.append(run)
        elif (status.is_live or is_starting) and run.is_ours():
            working.append(run)
    place = {name: number for number, name in enumerate(order)}
    waiting.sort(key=lambda run: place.get(run.id, -1))
    return Left(tuple(working), tuple(waiting), tuple(crashed))


def _may_wait(run: RunDir) -> bool:
    """Whether the end of the journal says that the run waits, or says nothing."""
    try:
        with run.journal_path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return False
    last = next((event for event in map(from_line, reversed(lines)) if isinstance(event, Queued | Started | Ended)), None)
    return isinstance(last, Queued) or (last is None and size <= TAIL_BYTES)
