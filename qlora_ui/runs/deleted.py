"""What lies in the trash of a workspace: listing it, putting something back, emptying it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import change_json, size_of_tree
from qlora_ui.base.trash import OF_FILES, note_of, take_out
from qlora_ui.catalog.exports import EXPORT_FORMS, EXPORT_NOTES
from qlora_ui.runs.registry import refuse_while_worked_on
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace

_MARK = re.compile(r"-[0-9a-f]{4}$")
"""What is put behind a name in the trash, so that none takes the place of another."""
CONVERSATION = "cache/chat.json"
"""Where the app has its one conversation, below the workspace."""
_HOMES = ("runs", "models", "datasets", "presets")
"""Folders of a workspace from which things are deleted."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """Something in the trash."""

    folder: str
    """Its name in the trash."""
    kind: str
    """As of a Note; `other` for what nothing is known of."""
    name: str
    place: str
    """Where it was, below the workspace; empty where that is not known."""
    at: float
    """When it was deleted, in Unix seconds."""
    num_bytes: int

    @property
    def run_id(self) -> str:
        """The run that it is or was part of; empty for other things."""
        parts = PurePosixPath(self.place).parts
        return parts[1] if self.kind in ("run", "checkpoints", "export") else ""

    def is_run(self, run_id: str) -> bool:
        """Whether it is the whole of that run."""
        return self.kind == "run" and self.run_id == run_id


def deleted(workspace: Workspace) -> tuple[Deleted, ...]:
    """What lies in the trash, the last deleted first; looked for anew where something came or went."""
    # Two changes of one moment may leave the same time.
    return _deleted(workspace, workspace.trash.stat().st_mtime_ns, tuple(sorted(os.listdir(workspace.trash))))


@lru_cache(maxsize=4)
def _deleted(workspace: Workspace, changed: int, names: tuple[str, ...]) -> tuple[Deleted, ...]:
    found = (_described(workspace, workspace.trash / name) for name in names if not name.startswith("."))
    return tuple(sorted(found, key=lambda one: (-one.at, one.folder)))


def _described(workspace: Workspace, entry: Path) -> Deleted:
    size = 0 if entry.is_symlink() else size_of_tree(entry)
    note = note_of(entry)
    if note is not None and _is_home(note.kind, note.place):
        return Deleted(entry.name, note.kind, note.name, note.place, note.at, size)
    try:
        kind, place = next(_guessed(entry, _MARK.sub("", entry.name)), ("other", ""))
    except OSError:  # removed in this moment, or nobody may look at it
        kind, place = "other", ""
    name = RunDir(entry).called if kind == "run" else PurePosixPath(place).name
    if kind in ("checkpoints", "export"):
        name = f"{name}, of {RunDir(workspace.runs / PurePosixPath(place).parts[1]).called}"
    if kind == "run" and name == entry.name:
        name = RunDir(workspace.root / place).default_name
    return Deleted(entry.name, kind, name or entry.name, place, _deleted_at(entry), size)


def _guessed(entry: Path, stem: str) -> Iterator[tuple[str, str]]:
    """Kind and place of what an earlier version of the app, or a full disk, left without a note."""
    if (entry / "events.jsonl").is_file():  # its settings may be lost: what is left can still be looked at
        yield "run", f"runs/{stem}"
    if stem.endswith("-checkpoints") and any(entry.glob("checkpoint-*")):
        yield "checkpoints", f"runs/{stem.removesuffix('-checkpoints')}/checkpoints"
    for form in sorted((form.name for form in EXPORT_FORMS), key=len, reverse=True):
        if stem.endswith(f"-{form}") and entry.is_dir():
            yield "export", f"runs/{stem.removesuffix(f'-{form}')}/exports/{form}"
    if (entry / "config.json").is_file():
        yield "model", f"models/{stem}"
    inside = list(entry.iterdir()) if entry.is_dir() else []
    if len(inside) == 1 and not inside[0].is_dir():
        is_preset = inside[0].suffix == ".yaml"
        yield ("preset", f"presets/{inside[0].name}") if is_preset else ("data", f"datasets/{inside[0].name}")


def _is_home(kind: str, place: str) -> bool:
    """Whether a place is one from which such things are deleted: the notes are files that anybody can edit."""
    if kind == "conversation":
        return place == CONVERSATION
    parts = PurePosixPath(place).parts
    if len(parts) < 2 or parts[0] not in _HOMES or any(part in ("..", ".") for part in parts):
        return False
    match kind:
        case "run":
            return parts[0] == "runs" and len(parts) == 2
        case "checkpoints":
            return parts[0] == "runs" and parts[2:] == ("checkpoints",)
        case "export":
            return parts[0] == "runs" and parts[2:3] == ("exports",) and len(parts) == 4
        case "model" | "preset":
            return parts[0] == f"{kind}s" and len(parts) == 2
        case "data":
            return parts[0] == "datasets"
    return False


def _deleted_at(entry: Path) -> float:
    try:
        return entry.lstat().st_ctime
    except OSError:
        return 0.0


def put_back(workspace: Workspace, folder: str) -> Deleted:
    """Move something from the trash to where it was, and return what it is.

    Raises RunError where it is not there any more, where something has its place, and where the run that it is part of is gone or at work.
    """
    found = next((one for one in deleted(workspace) if one.folder == folder), None)
    if found is None:
        raise _missing()
    entry, target = workspace.trash / folder, workspace.root / found.place
    if not found.place:
        fix = f"Move it from {entry} with a file manager"
        raise RunError(f"The app does not know where {found.name} was.", fix=fix, code="trash-unknown")
    if found.kind == "conversation":
        what, where = "A conversation is put back on the page only, where it goes on.", next(entry.glob("*.json"), entry)
        raise RunError(what, fix=f"Open the app: the end of its Runs tab lists it. What was said is in {where}", code="trash-conversation")
    if found.kind in ("checkpoints", "export"):
        _refuse_without_run(workspace, found)
    note = note_of(entry)
    try:
        take_out(entry, target, is_file=found.kind in OF_FILES)
    except FileExistsError:
        raise _taken(found, target) from None
    except FileNotFoundError:
        raise _missing() from None
    except OSError as error:
        if os.path.lexists(target):
            raise _taken(found, target) from None
        why = error.strerror or str(error)
        raise RunError(f"{found.name} cannot be put back.", why=why, fix="Close what has it open, then do it again", code="trash") from None
    _tell_run(workspace, found, note.kept.get("note") if note is not None else None)
    return found


def _missing() -> RunError:
    return RunError("This is not in the trash any more.", fix="Look at the list again", code="trash-missing")


def _taken(found: Deleted, target: Path) -> RunError:
    what = f"There is a run {target.name} already." if found.kind == "run" else f"{found.name} cannot be put back."
    why = "It has the name of this one's folder" if found.kind == "run" else f"Something has come to its place: {found.place}"
    fix = "Delete or rename that first; putting back replaces nothing"
    return RunError(what, why=why, fix=fix, code="run-there" if found.kind == "run" else "trash-taken")


def _refuse_without_run(workspace: Workspace, found: Deleted) -> None:
    run = RunDir(workspace.runs / found.run_id)
    if not run.path.is_dir():
        lies_here = any(one.is_run(found.run_id) for one in deleted(workspace))
        why = "It is part of a run that was deleted, too" if lies_here else f"It is part of the run {found.run_id}, which is gone"
        fix = "Put the run back first" if lies_here else f"Take it from {workspace.trash / found.folder} with a file manager"
        raise RunError(f"{found.name} cannot be put back.", why=why, fix=fix, code="trash-run")
    if found.kind == "checkpoints":
        refuse_while_worked_on(run, "It will save checkpoints of its own")


def _tell_run(workspace: Workspace, found: Deleted, note: object) -> None:
    """Let a run know what it has again."""
    run = RunDir(workspace.runs / found.run_id)
    if found.kind == "checkpoints":
        # Lists look again at a run whose notes have changed.
        run.write_about()
    if found.kind == "export" and isinstance(note, dict):
        form = PurePosixPath(found.place).name
        change_json(run.exports / EXPORT_NOTES, lambda notes: notes.setdefault(form, note))


def trash_size(workspace: Workspace) -> tuple[int, int]:
    """How many deleted things lie in the trash, and their bytes."""
    lies = deleted(workspace)
    return len(lies), sum(one.num_bytes for one in lies)


def empty_trash(workspace: Workspace) -> tuple[int, int]:
    """Remove what was deleted from the disk, for good; returns how many things and bytes. Of a link only that goes."""
    before = trash_size(workspace)
    for path in list(workspace.trash.iterdir()):
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
    _deleted.cache_clear()
    left = trash_size(workspace)
    return before[0] - left[0], before[1] - left[1]
