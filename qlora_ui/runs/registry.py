"""All runs of a workspace: make, find, list, delete."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import DISK_FULL, resolve_inside
from qlora_ui.base.trash import throw_away
from qlora_ui.runs.events import Queued, Stopped, from_line
from qlora_ui.runs.journal import JournalWriter, drop_reserve, make_reserve
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

MOST_SET_BACK = timedelta(hours=27)
"""Between the time zones furthest apart lie 26 hours, and an hour of summer."""
_ID = re.compile(r"^\d{8}-\d{6}-[a-z0-9-]{1,40}-[0-9a-f]{4}$")
_RENAMED = re.compile(r"^\w[\w .()-]{0,99}$")
"""Names that people and file managers give; signs that mean something to pages and shells are not among them."""


def create_run(workspace: Workspace, config: RunConfig) -> RunDir:
    """Make the directory of a new run with its settings; the id holds the time and the name.

    Its last four digits count 65,536ths of the second, so that runs of one second keep their order.
    """
    stem = config.output.name or config.model.id.rsplit("/", maxsplit=1)[-1].rsplit(":", maxsplit=1)[-1]
    word = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-") or "run"
    run = RunDir(_free_path(workspace.runs, word))
    try:
        (run.path / "control").mkdir()
        run.write_config(config)
        queue_run(run)
    except (OSError, RunError):
        # Half a run would stand in the list as one that waits.
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def queue_run(run: RunDir) -> None:
    """Write down that a run waits, and keep room for the words with which it ends.

    Raises RunError where the disk has no room, and OSError where it takes nothing for another reason.
    """
    make_reserve(run.journal_path)
    journal = JournalWriter(run.journal_path)
    if journal.write(Queued(), durable=True):
        return
    with suppress(OSError):
        drop_reserve(run.journal_path)
    if journal.refusal is not None and journal.refusal.errno not in DISK_FULL:
        raise journal.refusal
    raise RunError("The disk is full.", why=f"Run {run.id} cannot wait or work", fix="Free some space, then try again", code="disk-full")


def unqueue_run(run: RunDir) -> None:
    """Write down that a run waits no longer; raises OSError where that cannot be written, and the run still waits."""
    journal = JournalWriter(run.journal_path)
    if not journal.write(Stopped(), durable=True) and journal.refusal is not None:
        raise journal.refusal
    drop_reserve(run.journal_path)


def _free_path(runs: Path, word: str) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    while True:
        now = time.time()
        path = runs / f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{word}-{int(now % 1 * 65536):04x}"
        try:
            path.mkdir()
        except FileExistsError:
            time.sleep(2**-16)
        else:
            return path


def find_run(workspace: Workspace, run_id: str) -> RunDir:
    """The run of that id, or the newest for `latest`; raises RunError where there is none."""
    if run_id == "latest":
        newest = newest_run(workspace)
        if newest is not None:
            return newest
        raise RunError("There is no run yet.", fix="Start one with “python app.py train --preset demo”.", code="run-missing")
    link = workspace.runs / run_id
    # A folder that its owner moved to another disk and left a link to; a page can name what lies in `runs` and nothing else.
    is_link = os.path.basename(run_id) == run_id and "\0" not in run_id and link.is_symlink()
    run = RunDir(link if is_link else resolve_inside(workspace.runs, run_id))
    # Without its settings a run can still be looked at and deleted.
    if not (run.config_path.is_file() or run.journal_path.is_file()):
        raise RunError(
            f"There is no run “{run_id}” in this workspace.",
            why="It may have been deleted",
            fix="Choose one that is there: the Runs tab lists them, and so does “python app.py runs”",
            code="run-missing",
        )
    return run


def list_runs(workspace: Workspace, known: Mapping[str, RunDir] = MappingProxyType({})) -> list[RunDir]:
    """All runs, newest first; folders that are no runs are left out. Those that are `known` by their ids are not made again."""
    folder = workspace.runs
    return [known.get(name) or RunDir(folder / name) for name in _newest_first(folder)]


def newest_run(workspace: Workspace) -> RunDir | None:
    """The first of `list_runs` that may be read, without making the others; None where there is none."""
    runs = (RunDir(workspace.runs / name) for name in _newest_first(workspace.runs))
    return next((run for run in runs if _may_be_read(run)), None)


def _may_be_read(run: RunDir) -> bool:
    return os.access(run.path, os.R_OK | os.X_OK) and (os.access(run.journal_path, os.R_OK) or not os.path.exists(run.journal_path))


def _newest_first(folder: Path) -> list[str]:
    """Ids by when their runs were made.

    An id holds the wall clock's time, and that goes back in autumn and on a journey west: for the last day's the journals are asked.
    Older ones stay in the order of their ids, so that thousands of journals need not be opened.
    """
    by_stamp = {name: name for name in filter(_ID.match, os.listdir(folder))}
    by_stamp |= _renamed(folder)
    names = sorted(by_stamp, key=lambda name: by_stamp[name], reverse=True)
    if not names:
        return []
    newest = _time_of_id(by_stamp[names[0]])
    recent = list(takewhile(lambda name: newest - _time_of_id(by_stamp[name]) < MOST_SET_BACK, names))
    recent.sort(key=lambda name: (_made_at(folder, name), name), reverse=True)
    return recent + names[len(recent) :]


def _renamed(folder: Path) -> dict[str, str]:
    """Folders of runs that their owner copied or renamed, with what an id of ours would begin with."""
    found = {}
    for name in os.listdir(folder):
        if _ID.match(name) or not _RENAMED.match(name):
            continue
        journal = os.path.join(folder, name, "events.jsonl")
        if os.path.isfile(journal) and os.path.isfile(os.path.join(folder, name, "config.yaml")):
            found[name] = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(_made_at(folder, name), 0.0)))
    return found


@cache
def _time_of_id(run_id: str) -> datetime:
    try:
        return datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return datetime.min


def _made_at(folder: Path, run_id: str) -> float:
    try:
        return _first_event_at(os.path.join(folder, run_id, "events.jsonl"))
    except (OSError, ValueError):
        return _time_of_id(run_id).replace(tzinfo=UTC).timestamp()


@cache
def _first_event_at(journal: str) -> float:
    with open(journal, "rb") as file:
        event = from_line(file.readline(4096))
    if event is None or not event.time:
        raise ValueError("no event yet")
    return event.time


def delete_run(workspace: Workspace, run: RunDir) -> Path:
    """Move a run to the workspace's trash and return where; raises RunError while a job works on it, or will."""
    refuse_while_worked_on(run, "Its job would begin without its settings")
    return throw_away(run.path, workspace.trash, kind="run", name=run.called, stem=run.id)


def delete_checkpoints(workspace: Workspace, run: RunDir) -> Path:
    """Move what a run saved on its way to the workspace's trash and return where; its adapter stays.

    Raises RunError while a job works on it, or will, and where the checkpoints are all that the run has.
    """
    refuse_while_worked_on(run, "It will go on from its newest checkpoint")
    if not run.has_adapter or not run.checkpoints.is_dir():
        what = "has no checkpoints" if run.has_adapter else "has nothing but its checkpoints"
        raise RunError(f"Run {run.id} {what}.", fix="Delete the run if it is of no use", code="run-checkpoints")
    target = throw_away(
        run.checkpoints, workspace.trash, kind="checkpoints", name=f"Checkpoints of {run.called}", stem=f"{run.id}-checkpoints"
    )
    # Lists look again at a run whose notes have changed.
    run.write_about()
    return target


def refuse_while_worked_on(run: RunDir, why_not_queued: str) -> None:
    """Raise RunError while a job works on a run, or will."""
    status = read_run(run).status
    if status.is_live:
        raise run.refusal(f"Run {run.id} is still running.", why="What it writes would be lost", fix="Stop it first.")
    if status is Status.QUEUED:
        raise RunError(
            f"Run {run.id} waits for its turn.",
            why=why_not_queued,
            fix="Take it out of the queue first: on the Train tab, or with “runs stop”",
            code="run-queued",
        )
