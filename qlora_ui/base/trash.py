"""The trash of a workspace: what is deleted goes there with a note of what it was and where, and can be put back.

What was a folder lies in the trash as a folder, a file in a folder of its own. The notes lie beside them, hidden.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import MAX_STEM_BYTES, copied_beside, move, read_json, remove_quietly, replace, write_json

OF_FILES = ("data", "preset", "conversation")
"""Kinds that are files; the others are folders, or links to one."""


@dataclass(frozen=True, slots=True)
class Note:
    """What something in the trash was."""

    kind: str
    """`run`, `checkpoints`, `export`, `model`, `data`, `preset` or `conversation`."""
    name: str
    """As a person calls it."""
    place: str
    """Where it was, from the workspace's root on, with slashes."""
    at: float
    """When it was deleted, in Unix seconds."""
    kept: Mapping[str, Any]
    """What else is needed to put it back."""


def throw_away(
    path: Path, trash: Path, *, kind: str, name: str, stem: str = "", place: str = "", kept: Mapping[str, Any] | None = None
) -> Path:
    """Move something of the workspace to its `trash` and return where it is now; a link is moved and what it leads to stays.

    `stem` begins the name that it gets there, `place` is where it belongs where that is not `path`; for the rest see Note. Raises OSError
    where a program holds it, and QloraUiError where a trash on another disk is full, both with all where it was.
    """
    entry = _free_entry(trash, stem or path.stem)
    target = entry / path.name if kind in OF_FILES else entry
    root = trash.parent
    where = place or (path.relative_to(root).as_posix() if path.is_relative_to(root) else "")
    with _noted(entry, {"kind": kind, "name": name, "place": where, "at": time.time(), "kept": kept or {}}):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            move(path, target)
        except (OSError, QloraUiError):
            if target is not entry:
                entry.rmdir()
            raise
    # What lies in the trash is counted anew when that changes.
    os.utime(trash)
    return target


def throw_away_file(path: Path, folder: Path, trash: Path, *, kind: str, name: str) -> Path:
    """`throw_away` for a file of `folder`, or of a folder in it.

    Raises QloraUiError for one that lies elsewhere, links in its folders followed, and where a program holds it.
    """
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise QloraUiError(f"{path.name} lies outside {folder.name}.", why="Only what is in it is deleted here", code="path")
    try:
        return throw_away(path, trash, kind=kind, name=name)
    except OSError as error:
        fix = "Close what has it open, then do it again"
        raise QloraUiError(f"{path.name} cannot be moved to the trash.", why=error.strerror or str(error), fix=fix, code="trash") from None


def note_of(entry: Path) -> Note | None:
    """What was written down of something in the trash; None for what an earlier version of the app, or a full disk, left without."""
    try:
        found = read_json(_note_path(entry))
        kept = found.get("kept") or {}
        return Note(str(found["kind"]), str(found["name"]), str(found["place"]), float(found["at"]), kept if isinstance(kept, dict) else {})
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def take_out(entry: Path, target: Path, *, is_file: bool) -> None:
    """Move something in the trash, `entry`, to `target`, where nothing is.

    Raises FileExistsError where something is, FileNotFoundError where it is not in the trash any more, QloraUiError where the disk of
    `target` has no room, and OSError where a program holds it.
    """
    source = entry / target.name if is_file else entry
    if not os.path.lexists(source):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _put(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _put_on_other_disk(source, target)
    if is_file:
        with suppress(OSError):
            entry.rmdir()
    with suppress(OSError):
        _note_path(entry).unlink(missing_ok=True)
    os.utime(entry.parent)


def discard(entry: Path) -> None:
    """Remove something from the trash for good, as what it held is elsewhere again."""
    remove_quietly(entry)
    with suppress(OSError):
        _note_path(entry).unlink(missing_ok=True)
    os.utime(entry.parent)


def _put_on_other_disk(source: Path, target: Path) -> None:
    fix = "Free some space there, then do it again"
    aside = copied_beside(source, target, where="where it was", fix=fix)
    try:
        _put(aside, target)
    except OSError:
        remove_quietly(aside)
        raise
    remove_quietly(source)


def _put(source: Path, target: Path) -> None:
    """`os.replace` that takes nothing's place, whatever comes there in the same moment."""
    if source.is_dir() and not source.is_symlink():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        # Systems let a folder take the place of an empty one at most.
        replace(source, target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except (OSError, NotImplementedError):  # a disk that knows no links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        replace(source, target)
    else:
        source.unlink()


def _free_entry(trash: Path, stem: str) -> Path:
    short = stem.encode()[:MAX_STEM_BYTES].decode(errors="ignore")
    while os.path.lexists(entry := trash / f"{short}-{secrets.token_hex(2)}"):
        pass
    return entry


def _note_path(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.json")


@contextmanager
def _noted(entry: Path, note: Mapping[str, Any]) -> Iterator[None]:
    """Write the note before the block moves what it is of; it goes again where that fails."""
    # A full disk keeps nothing from being deleted.
    with suppress(OSError):
        write_json(_note_path(entry), note)
    try:
        yield
    except BaseException:
        _note_path(entry).unlink(missing_ok=True)
        raise
