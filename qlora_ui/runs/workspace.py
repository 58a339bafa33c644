"""The folder that holds everything of the user's: runs, models, datasets, presets.

One app owns a workspace at a time; commands that only read need no ownership.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from filelock import FileLock, Timeout
from platformdirs import user_data_path

from qlora_ui.base.bounded import keep_within
from qlora_ui.base.errors import RunError
from qlora_ui.base.files import DISK_FULL, GONE, read_json, take_back, write_json
from qlora_ui.models.hub_cache import cache_folder
from qlora_ui.runs.moved import note_place
from qlora_ui.runs.owner import is_alive

LEFT_S = 24 * 3600.0
"""What a command writes aside is done within this time; commands that need no ownership may be at it beside the app."""

MAKING = ".making-"
"""Begins the names of folders in which exports are made, beside those of a run that are whole."""
MAKER = "owner.json"
"""In such a folder: the process that makes it."""


def _users_own() -> Path:
    """Where the workspace is when nobody says so."""
    return user_data_path("qlora-ui", appauthor=False)


def _given(folder: str | Path | None) -> Path:
    return Path(folder or os.environ.get("QLORA_UI_HOME") or _users_own()).expanduser()


def _refuse_dangling_link(given: Path) -> None:
    """A workspace made anew where the link leads would be empty, and look as if all runs were lost."""
    for path in (given, *given.parents):
        if os.path.islink(path) and not os.path.exists(path):
            raise RunError(
                f"The workspace {given} is not there.",
                why=f"{path} is a link to {os.path.realpath(path)}, which does not exist",
                fix="Connect the disk that it is on, let the link lead to where it is now, or give another folder with --workspace DIR",
                code="workspace",
            )


@dataclass(frozen=True, slots=True)
class Workspace:
    """Folders of a workspace, by name; made when first used."""

    root: Path
    aside: Path | None = None
    """Where one that may not be written has what can be made again."""

    @classmethod
    def named(cls, folder: str | Path | None = None) -> Self:
        """The workspace in `folder`, else in QLORA_UI_HOME, else in the user's data folder, as it is: it may not be there."""
        return cls(_given(folder).resolve())

    @classmethod
    def at(cls, folder: str | Path | None = None) -> Self:
        """The same with all its folders; raises RunError where they cannot be made or written, or a link leads to a disk that is away."""
        _refuse_dangling_link(_given(folder))
        workspace = cls.named(folder)
        root = workspace.root
        try:
            for name in ("runs", "models", "datasets", "presets", "temp", "trash", "cache"):
                (root / name).mkdir(parents=True, exist_ok=True)
            probe = root / "temp" / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"The workspace {root} cannot be written.",
                why=error.strerror or str(error),
                fix="Give another folder with --workspace DIR.",
                code="workspace",
            ) from None
        return workspace

    @classmethod
    def to_read(cls, folder: str | Path | None = None) -> Self:
        """The same for what only reads, which a workspace need not be writable for; raises RunError where there is none to read either."""
        try:
            return cls.at(folder)
        except RunError:
            workspace = cls.named(folder)
            if not os.access(workspace.runs, os.R_OK | os.X_OK):
                raise
            return workspace

    def raise_if_away(self) -> None:
        """Raise RunError where the folder was moved, or its disk is not connected any more."""
        if not os.path.isdir(self.runs):
            raise RunError(
                f"The workspace {self.root} is not there.",
                why="Its folder was moved or deleted, or the disk that it is on is away",
                fix="Put it back; a run that goes on keeps what it has to write until then",
                code="workspace",
            )

    @property
    def flag(self) -> str:
        """What a command needs to find this workspace from any terminal: `--workspace "DIR"`, nothing for the user's own."""
        return "" if self.root == _users_own().resolve() else f'--workspace "{self.root}"'

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def presets(self) -> Path:
        return self.root / "presets"

    @property
    def temp(self) -> Path:
        return (self.aside or self.root) / "temp"

    @property
    def uploads(self) -> Path:
        """What browsers send and fetch, of the app that owns the workspace."""
        return self.temp / "uploads"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def cache(self) -> Path:
        return (self.aside or self.root) / "cache"

    @property
    def rows_and_tokens(self) -> tuple[Path, Path]:
        """What was read of data files, and its tokens: both are kept within a bound (`base.bounded`)."""
        return self.cache / "data", self.cache / "tokens"


class Ownership:
    """Holds a workspace for this process; a context manager."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._note = workspace.root / ".owner.json"
        self._root = workspace.root
        self._lock = FileLock(workspace.root / ".lock", timeout=0)

    def __enter__(self) -> Self:
        """Take the workspace, and remove what a process that was killed has left; raises RunError naming the process that has it."""
        try:
            self._lock.acquire()
        except Timeout:
            owner = read_json(self._note) or {}
            where = f" at {owner['url']}" if owner.get("url") else ""
            raise RunError(
                f"Another QLoRA UI (process {owner.get('pid', 'unknown')}) already uses the workspace {self._root}{where}.",
                why="Two at once would write the same runs.",
                fix="Use that one, close it first, or give another folder with --workspace DIR.",
                code="workspace-in-use",
            ) from None
        # First what may make room: on a full disk the app is where a user sees what takes it.
        _remove_left(self._workspace)
        self.note()
        with suppress(OSError):
            note_place(self._root)
        return self

    def note(self, url: str = "") -> None:
        """Write down who holds the workspace, and where its page is; on a full disk others are told without that."""
        try:
            write_json(self._note, {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "url": url})
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._note.unlink(missing_ok=True)
        self._lock.release()


def _remove_left(workspace: Workspace) -> None:
    """Remove uploads and packed exports of an app that is gone, and what was being made or written aside long ago, of which an export
    is as large as a model. Links are not followed.
    """
    aside = (
        (path for path in _inside(workspace.temp) if path != workspace.uploads),
        (path for folder in _places(workspace) for path in _inside(folder) if path.name.startswith(GONE)),
        (path for run in _inside(workspace.runs) for path in _inside(run / "exports") if path.name.startswith((MAKING, GONE))),
        (path for folder in workspace.rows_and_tokens for path in _inside(folder) if path.name.startswith(".")),
        (path for folder in (workspace.datasets, *_inside(workspace.datasets)) for path in _inside(folder) if _is_aside(path)),
    )
    before = time.time() - LEFT_S
    left = (path for path in itertools.chain(*aside) if _changed_at(path) < before or _is_orphan(path))
    for path in (*_inside(workspace.uploads), *left):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for run in _inside(workspace.runs):
        with suppress(OSError):  # a folder of somebody else's keeps nobody from starting
            take_back(run / "exports")
    keep_within(workspace.rows_and_tokens)


def _places(workspace: Workspace) -> tuple[Path, ...]:
    """Where something may be left that a process was killed in removing, or in moving to a trash on another disk."""
    return (workspace.models, workspace.runs, workspace.trash, cache_folder())


def _inside(folder: Path) -> Iterable[Path]:
    if os.path.islink(folder):  # Path would raise where the folder around it may not be read
        return
    with suppress(OSError):
        yield from (folder / name for name in os.listdir(folder))


def _is_aside(path: Path) -> bool:
    """Whether `base.files.written_aside` made it."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def _is_orphan(path: Path) -> bool:
    """Whether it is an export that nobody makes any more; the processes of other machines cannot be seen and count as at it."""
    maker = read_json(path / MAKER) if path.name.startswith(MAKING) else None
    return isinstance(maker, dict) and not is_alive(maker, time.time)


def _changed_at(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return time.time()
