"""The folder that holds everything of the user's: runs, models, datasets, presets.

One app owns a workspace at a time; commands that only read need no ownership.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from filelock import FileLock, Timeout
from platformdirs import user_data_path

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import read_json, write_json


def _users_own() -> Path:
    """Where the workspace is when nobody says so."""
    return user_data_path("qlora-ui", appauthor=False)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Folders of a workspace, by name; made when first used."""

    root: Path

    @classmethod
    def at(cls, folder: str | Path | None = None) -> Self:
        """The workspace in `folder`, else in QLORA_UI_HOME, else in the user's data folder.

        Raises RunError where the folder cannot be made or written.
        """
        root = Path(folder or os.environ.get("QLORA_UI_HOME") or _users_own()).expanduser().resolve()
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
        return cls(root)

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
        return self.root / "temp"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def cache(self) -> Path:
        return self.root / "cache"


class Ownership:
    """Holds a workspace for this process; a context manager."""

    def __init__(self, workspace: Workspace) -> None:
        self._note = workspace.root / ".owner.json"
        self._root = workspace.root
        self._lock = FileLock(workspace.root / ".lock", timeout=0)

    def __enter__(self) -> Self:
        """Take the workspace; raises RunError naming the process that has it."""
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
        self.note()
        return self

    def note(self, url: str = "") -> None:
        """Write down who holds the workspace, and where its page is."""
        write_json(self._note, {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "url": url})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._note.unlink(missing_ok=True)
        self._lock.release()
