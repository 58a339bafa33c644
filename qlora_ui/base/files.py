"""Files that are whole or not there, and files that grow."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.units import MIB, format_bytes

DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Codes of a system that has no room for what is written."""
DISK_AWAY = frozenset((errno.EIO, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESTALE))
"""Codes of a disk that was unplugged, a network drive that went away, or one that breaks."""
MAX_STEM_BYTES = 120
"""File systems take 143 to 255 bytes for a name; a number and the mark of a fixed version come behind it."""
GONE = ".qlora-ui-gone-"
"""Begins the names of folders that are being removed."""
LEAST_FREE_BYTES = MIB
"""A disk with less than this is full: what grows by lines may still find room there, and nothing else."""
BUSY_S = 2.0 if os.name == "nt" else 0.0
"""Windows refuses to replace or move what anybody has open, and each page reads files of a run each second."""
CHANGE_S = 10.0
"""Longest wait for another that changes the same small file."""
_OLD = ".old-"
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(1, 10))})


def disk_full_in_words(error: BaseException) -> QloraUiError | None:
    """What a write that failed for lack of space means to the user; None for every other failure."""
    if not isinstance(error, OSError) or error.errno not in DISK_FULL:
        return None
    what = f"{error.filename} could not be written" if error.filename else "What was to be written does not fit"
    return QloraUiError("The disk is full.", why=what, fix="Free some space, then do it again", code="disk-full")


def disk_in_words(error: BaseException) -> QloraUiError | None:
    """What a full disk, one that is not writable or not there, or a file of somebody else's means to the user; None for other failures."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        why = (
            f"{error.filename} lies on a disk that the system lets nobody write to"
            if error.filename
            else "The system lets nobody write to it"
        )
        fix = "Make it writable, then do it again; one with errors becomes read-only by itself and wants to be checked"
        return QloraUiError("The disk is read-only.", why=why, fix=fix, code="disk-read-only")
    if isinstance(error, PermissionError) and error.filename:
        why = "Its permissions do not allow it, or another program holds it"
        fix = "Give yourself the right to it, or close what uses it, then do it again"
        return QloraUiError(f"The system refuses access to {error.filename}.", why=why, fix=fix, code="disk-refused")
    if isinstance(error, OSError) and error.errno in DISK_AWAY:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        fix = "See that the disk or the network drive is there, then do it again; a disk with errors wants to be checked"
        return QloraUiError("The disk does not answer.", why=why, fix=fix, code="disk-away")
    return disk_full_in_words(error)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, tried again for a moment where the system refuses because somebody reads one of the two just now."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)


def move(source: Path, target: Path) -> None:
    """Move a file or a folder to the trash, on another disk too.

    Raises OSError where a program holds it, and QloraUiError where that disk is full, both with all where it was.
    """
    try:
        replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_to_other_disk(source, target)


def _move_to_other_disk(source: Path, target: Path) -> None:
    fix = f"Empty the trash, at the end of the Runs tab, then do it again; or remove {source} by hand"
    aside = copied_beside(source, target, where="in the trash", fix=fix)
    gone = source.with_name(f"{GONE}{secrets.token_hex(6)}")
    try:
        # Only what is whole on the other disk is removed from this one, and at once: nobody finds half of it on either, nor none.
        replace(aside, target)
        replace(source, gone)
    except OSError:
        remove_quietly(aside)
        remove_quietly(target)
        raise
    remove_quietly(gone)


def copied_beside(source: Path, target: Path, *, where: str, fix: str) -> Path:
    """A whole copy of a file or a folder beside `target`, on its disk, under a name of what is on its way.

    Raises OSError where something cannot be read, and QloraUiError of these words where it does not fit.
    """
    needed = size_of_tree(source)
    full = QloraUiError(
        f"There is no room {where} for {source.name}.",
        why=f"The trash is on another disk, and {format_bytes(needed)} do not fit there",
        fix=fix,
        code="trash-full",
    )
    if needed > free_bytes(target.parent):
        raise full
    aside = target.with_name(f"{GONE}{secrets.token_hex(6)}")
    try:
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, aside, symlinks=True, copy_function=shutil.copy2)
        else:
            shutil.copy2(source, aside, follow_symlinks=False)
    except OSError as error:
        remove_quietly(aside)
        # `copytree` gathers what went wrong as words.
        if error.errno in DISK_FULL or os.strerror(errno.ENOSPC) in str(error):
            raise full from None
        raise
    return aside


def remove_quietly(path: Path) -> None:
    """Remove a file, a folder or a link as far as the system lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_at_once(path: Path) -> None:
    """Remove a folder, or a link to one, at once and whole, so that nobody finds half of it.

    Raises OSError, with all where it was, where a program holds it. What then resists lies beside it, named after GONE.
    """
    gone = path.with_name(f"{GONE}{secrets.token_hex(6)}")
    replace(path, gone)
    remove_quietly(gone)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place beside `path` to write its content to: at the end of the block that becomes `path`, at once and whole.

    A reader, a crash or a full disk sees the old file or the new one and never half of either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        yield aside
        # Windows syncs only files opened for writing.
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path, num_bytes: int) -> Iterator[None]:
    """Room on the disk for what is written to `path` after the block, which may take hours; raises OSError at once where there is none."""
    try:
        keep_room(path, num_bytes)
        yield
    finally:
        give_room(path)


def keep_room(path: Path, num_bytes: int) -> None:
    """Take room on the disk for what is written to `path` later, until `give_room`; raises OSError where there is none."""
    try:
        with _room(path).open("wb") as file:
            for start in range(0, num_bytes, MIB):
                # Not zeros: some file systems store those in no space at all.
                file.write(os.urandom(min(MIB, num_bytes - start)))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        give_room(path)
        raise


def give_room(path: Path) -> None:
    """Give back what `keep_room` took, where it did."""
    with suppress(OSError):
        _room(path).unlink(missing_ok=True)


def _room(path: Path) -> Path:
    return path.with_name(f".room-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Write `text` whole, as UTF-8 with the line ends that it has."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `value` as JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no such file or it holds no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` change the JSON object in `path`, {} where there is none, while no other thread or process does so."""
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=CHANGE_S):
        found = read_json(path)
        value = found if isinstance(found, dict) else {}
        change(value)
        write_json(path, value)


def put_aside(path: Path) -> Path:
    """Keep a file that cannot be read from being written over by what comes next; where it lies then."""
    aside = path.with_name(f"{path.stem}-unreadable-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
    try:
        os.replace(path, aside)
    except OSError:
        return path
    return aside


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable; does nothing where directories cannot be synced (Windows)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def put_in_place(staged: Path, final: Path) -> None:
    """Let a folder that was written aside take the place of another; a reader sees the old or the new one, or for an instant none.

    Raises OSError, with the old one as it was, where a program holds it (on Windows an open file is enough).
    """
    old = final.with_name(f"{_OLD}{final.name}")
    if final.exists():
        if old.exists():
            remove_at_once(old)
        replace(final, old)
    try:
        replace(staged, final)
    except OSError:
        if old.exists():
            replace(old, final)
        raise
    if old.exists():
        # At once: what bears this name is whole, so that it can be taken for the one that was there (`take_back`).
        with suppress(OSError):
            remove_at_once(old)


def take_back(folder: Path) -> None:
    """Put back in a folder what `put_in_place` had moved aside when its process was killed; what has its successor is removed."""
    for old in folder.glob(f"{_OLD}*"):
        final = old.with_name(old.name.removeprefix(_OLD))
        with suppress(OSError):
            remove_at_once(old) if final.exists() else replace(old, final)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of_tree(path: Path) -> int:
    """Bytes of all files below `path`, links not followed; 0 where there is nothing. What goes meanwhile is not counted."""
    if path.is_file():
        return path.stat().st_size
    total, folders = 0, [str(path)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat().st_size
    return total


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def disk_trouble(folder: Path) -> str:
    """Why nothing can be written to a folder now: `gone`, `read-only` or `full`; empty where something can."""
    try:
        if not folder.is_dir():
            return "gone"
        if not os.access(folder, os.W_OK):
            return "read-only"
        return "full" if free_bytes(folder) < LEAST_FREE_BYTES else ""
    except OSError:
        return "gone"


def typed_path(text: str) -> Path:
    """The path that a user means, `~` filled in; `~name` stays as it is where there is no such user.

    Ask os.path whether it is there: what was typed or pasted may be longer than a name can be, for which Path raises OSError.
    """
    return Path(os.path.expanduser(text))


def safe_stem(text: str) -> str:
    """A file name that every system takes and that its owner knows again: letters of every script with their marks, digits and `_.-`.

    Signs that steer (control, direction, zero width) are left out, and what else there is becomes a dash; empty where nothing is left.
    """
    told = (sign for sign in unicodedata.normalize("NFC", text) if not unicodedata.category(sign).startswith("C"))
    kept = "".join(sign if sign in "_.-" or unicodedata.category(sign)[0] in "LMN" else " " for sign in told)
    word = re.sub(r" +", "-", kept)
    # Half a letter at the cut is dropped with the bytes that it lacks.
    word = word.encode()[:MAX_STEM_BYTES].decode(errors="ignore").strip("-.")
    # Windows takes the part before the first dot for a device's name, and a raised digit for a digit.
    device = unicodedata.normalize("NFKC", word.partition(".")[0]).lower()
    return f"_{word}" if device in _RESERVED else word


def resolve_inside(root: Path, name: str) -> Path:
    """The path of `name` below `root`, links followed.

    Raises QloraUiError where the result would lie outside: names come from pages and files of others.
    """
    root = root.resolve()
    path = (root / name).resolve()
    if "\0" in name or not path.is_relative_to(root) or path == root:
        raise QloraUiError(f"“{name[:80]}” is not a name inside {root.name}.", fix="Choose one of the listed names.", code="path")
    return path


class GrowingLines:
    """Complete lines of a file that another thread or process appends to, each handed out once."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def read(self) -> Iterator[bytes]:
        """The lines completed since the last call; an unfinished last line waits for its end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read()
        except FileNotFoundError:
            return
        end = chunk.rfind(b"\n") + 1
        self.offset += end
        yield from chunk[:end].splitlines()
