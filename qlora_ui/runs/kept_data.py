"""Data files that are kept: in the workspace uploads, pasted rows, answers from the chat, versions that a fix has made; and datasets that
the app has downloaded, which lie in the Hub's cache.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.errors import DataError, QloraUiError
from qlora_ui.base.files import remove_at_once, typed_path
from qlora_ui.base.trash import throw_away_file
from qlora_ui.data.sources import hub_id
from qlora_ui.models.hub_cache import DATASETS, brought, download_mark, held_bytes, repository_folder
from qlora_ui.runs.listing import RunRow
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.source import DataSource

_NOTE = re.compile(r"-v\d+\.json$")
"""Beside a version that a fix has made. It stays when that is deleted: its number is not given to other rows, which old runs would name."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A data file of the workspace, or a dataset of the Hub, which is a folder."""

    path: Path
    num_bytes: int
    kept_at: float
    """When it was written, in Unix seconds."""
    hub_id: str = ""
    """Its name on the Hub; empty for a file."""

    @property
    def id(self) -> str:
        """By which a run or a page names it as a dataset."""
        return f"hub:{self.hub_id}" if self.hub_id else str(self.path)


def kept_files(workspace: Workspace) -> list[KeptFile]:
    """The data files of the workspace, newest first; the notes beside fixed versions are none."""
    found = []
    for path in _files(workspace.datasets):
        if path.parent == workspace.datasets and _NOTE.search(path.name):
            continue
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append(KeptFile(path, stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda file: (-file.kept_at, file.path.name))


def downloaded() -> list[KeptFile]:
    """The datasets that the app has downloaded, newest first."""
    found = []
    for name in brought(DATASETS):
        with contextlib.suppress(OSError):
            at = download_mark(name, DATASETS).stat().st_mtime
            found.append(KeptFile(repository_folder(name, DATASETS), held_bytes(name, DATASETS), at, name))
    return sorted(found, key=lambda one: (-one.kept_at, one.hub_id))


def delete_downloaded(workspace: Workspace, file_id: str, runs: Iterable[RunRow]) -> None:
    """Remove a downloaded dataset from the Hub's cache; `runs` are all runs.

    Raises DataError where there is no such one, where a run is at work with it, and where a program holds it.
    """
    found = next((one for one in downloaded() if one.id == file_id), None)
    if found is None:
        raise DataError("This dataset is not kept here any more.", fix="Look at the list again", code="DATA-MISSING")
    # One that waits brings it again by itself.
    for row in runs:
        if row.status.is_live and any(hub_id(source.id) == found.hub_id for source in _sources(RunDir(workspace.runs / row.id))):
            raise DataError(
                f"{found.hub_id} is needed by the run {row.name}.", why="It works with it", fix="Let the run end first", code="DATA-NEEDED"
            )
    try:
        remove_at_once(found.path)
    except OSError as error:
        fix = "Close what has it open, then do it again"
        raise DataError(f"{found.hub_id} cannot be deleted.", why=error.strerror or str(error), fix=fix, code="DATA-IN-USE") from None


def delete_kept(workspace: Workspace, file_id: str, runs: Iterable[RunRow]) -> Path:
    """Move a kept file to the workspace's trash and return where; `runs` are all runs.

    Raises DataError where there is no such file, and where a run that works, waits or can be continued still has to read it.
    """
    path = next((file.path for file in kept_files(workspace) if file.id == file_id), None)
    if path is None:
        raise DataError("This file is not kept here any more.", fix="Look at the list again", code="DATA-MISSING")
    if needing := [row for row in runs if _needs(RunDir(workspace.runs / row.id), row.status, path)]:
        others = f" and {len(needing) - 1} more" if len(needing) > 1 else ""
        raise DataError(
            f"{path.name} is needed by the run {needing[0].name}{others}.",
            why="It works with it" if needing[0].status.is_live else "It has still to read it when its turn comes, or when it is continued",
            fix="Let the run end, take it out of the queue, or delete it first",
            code="DATA-NEEDED",
        )
    moved = throw_away_file(path, workspace.datasets, workspace.trash, kind="data", name=path.name)
    if path.parent != workspace.datasets:
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    return moved


def _needs(run: RunDir, status: Status, path: Path) -> bool:
    """Whether a run reads the file now or may do so later; one that goes on from a checkpoint has its rows in its own folder."""
    is_next = status.is_live or status is Status.QUEUED
    if not is_next and (not status.can_resume or ((run.data / "receipt.json").is_file() and run.saved_steps())):
        return False
    return any(_same_file(typed_path(source.id), path) for source in _sources(run))


def _sources(run: RunDir) -> Sequence[DataSource]:
    try:
        return run.config().data.sources
    except QloraUiError:
        # It cannot be started or continued.
        return ()


def _same_file(named: Path, path: Path) -> bool:
    try:
        return named.samefile(path)
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> Iterator[Path]:
    """Files of the folder and of the folders in it that are no links."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                yield from (Path(inner.path) for inner in os.scandir(entry.path) if inner.is_file() and not inner.name.startswith("."))
        elif entry.is_file():
            yield Path(entry.path)
