"""Runs in the trash: which there are, and putting one back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.files import move
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace

_MARK = re.compile(r"-[0-9a-f]{4}$")
"""What `delete_run` puts behind the id, so that none takes the place of another."""


@dataclass(frozen=True, slots=True)
class DeletedRun:
    """A run that lies in the trash."""

    folder: str
    """Its name in the trash."""
    id: str
    name: str


def deleted_runs(workspace: Workspace) -> tuple[DeletedRun, ...]:
    """The runs in the trash, the last deleted first as far as the system says; looked for anew where something came or went."""
    return _deleted_runs(workspace, workspace.trash.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _deleted_runs(workspace: Workspace, changed: int) -> tuple[DeletedRun, ...]:
    found = [(path.lstat().st_ctime, path) for path in workspace.trash.iterdir() if _MARK.search(path.name) and _is_run(path)]
    return tuple(_described(workspace, path) for _, path in sorted(found, reverse=True))


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "events.jsonl").is_file()


def _described(workspace: Workspace, path: Path) -> DeletedRun:
    run, run_id = RunDir(path), _MARK.sub("", path.name)
    try:
        config = run.config()
    except QloraUiError:
        config = None
    given = run.about().get("name") or (config.output.name if config else "")
    return DeletedRun(path.name, run_id, str(given or RunDir(workspace.runs / run_id).default_name))


def put_back(workspace: Workspace, folder: str) -> RunDir:
    """Move a run from the trash to the others; raises RunError where it is not there any more, or its place is taken."""
    found = next((run for run in deleted_runs(workspace) if run.folder == folder), None)
    if found is None:
        raise RunError("This run is not in the trash any more.", fix="Look at the list again", code="trash-missing")
    run = RunDir(workspace.runs / found.id)
    if run.path.exists():
        raise RunError(
            f"There is a run {found.id} already.", why="It has the name of this one's folder", fix="Delete that first", code="run-there"
        )
    try:
        move(workspace.trash / folder, run.path)
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(f"{found.name} cannot be put back.", why=why, fix="Close what has it open, then do it again", code="trash") from None
    return run
