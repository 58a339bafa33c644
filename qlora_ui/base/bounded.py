"""Folders of what can be made again: bounded, and what was used longest ago goes first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.files import remove_at_once, size_of_tree
from qlora_ui.base.units import GIB

MOST_BYTES = 10 * GIB
"""Of all folders together. A gigabyte of rows takes some three, read and tokenized."""
IN_USE_S = 3600.0
"""What was used within this time stays: a run reads it, or a page that is open."""


@dataclass(frozen=True, slots=True)
class Remade:
    """Something that can be made again."""

    path: Path
    num_bytes: int
    used_at: float
    """Unix seconds."""

    def is_in_use(self, now: float) -> bool:
        """Whether somebody may be reading it; a time that has not come yet is of a clock that was wrong."""
        return abs(now - self.used_at) < IN_USE_S


def mark_used(entry: Path) -> None:
    """Note that it was of use now. Its folder's own time is the note: disks do not keep when a file was last read."""
    with suppress(OSError):
        os.utime(entry)


def entries_of(folders: Iterable[Path]) -> list[Remade]:
    """What the folders hold, used longest ago first; what is still being written aside is left out."""
    found = []
    for folder in folders:
        with suppress(OSError):
            for entry in os.scandir(folder):
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        found.append(Remade(Path(entry.path), size_of_tree(Path(entry.path)), entry.stat().st_mtime))
    return sorted(found, key=lambda one: one.used_at)


def keep_within(folders: Iterable[Path], most_bytes: int | None = None) -> int:
    """Remove what was used longest ago until the rest has `most_bytes` (else MOST_BYTES), but nothing that is in use; returns the bytes
    that are free again.
    """
    most_bytes = MOST_BYTES if most_bytes is None else most_bytes
    entries, now, freed = entries_of(folders), time.time(), 0
    total = sum(one.num_bytes for one in entries)
    for one in entries:
        if total - freed <= most_bytes:
            break
        if not one.is_in_use(now) and _remove(one):
            freed += one.num_bytes
    return freed


def _remove(one: Remade) -> bool:
    """Whether it is gone; on Windows what a program has open stays."""
    try:
        # Somebody may have begun to use it since all of them were counted; Windows, too, tells a folder's entries late.
        if one.path.stat().st_mtime != one.used_at:
            return False
        remove_at_once(one.path)
    except OSError:
        return False
    return True
