"""The journal of a run: typed events, one a line, appended by the job and read by anybody."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from io import RawIOBase
from pathlib import Path

from qlora_ui.base.files import DISK_FULL, GrowingLines
from qlora_ui.base.units import KIB
from qlora_ui.runs.events import CheckpointSaved, Ended, Event, from_line, to_line

KEPT_LINES = 10_000
"""Lines that wait for a disk that takes them."""
LAST_S = 10.0
"""How long the last event of a job waits for a file that is refused: backups and virus scanners hold one for seconds."""
RESERVE_BYTES = 256 * KIB
"""Room for a run's last words: an end with its traceback, and the minutes of lines that wait before it."""


class JournalWriter:
    """Appends events; the only writer of its file. Safe to use from the job's threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._unwritten: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._is_torn = False
        self.refusal: OSError | None = None
        """Why the disk did not take the last event."""
        self.step = 0
        """Stamped on events that carry no step of their own."""
        _end_broken_line(path)

    def write(self, event: Event, *, durable: bool = False) -> bool:
        """Append the event with the time of now; `durable` waits until it is on the disk.

        What the disk does not take (it is full, not connected for a moment, or another program holds the file) is kept and written with a
        later event, since a run does not end for want of a line; False says so. Raises FileNotFoundError where the run was deleted.
        A job's last event has no later one: the room that was kept for it is given up, and more points of curves than fit are lost;
        a disk that refuses for another reason is asked again for a while.
        """
        stamped = replace(event, time=event.time or time.time(), step=event.step or self.step)
        with self._lock:
            self._unwritten.append((to_line(stamped) + "\n").encode())
            # A checkpoint is forced to the disk before it is told of, and a power cut shall not take the word of it either.
            durable = durable or isinstance(event, CheckpointSaved)
            is_written = self._append(durable)
            if not is_written and isinstance(event, Ended):
                is_written = self._append_last(durable)
            return is_written

    def _append_last(self, durable: bool) -> bool:
        until = time.monotonic() + LAST_S
        while self.refusal is not None and self.refusal.errno not in DISK_FULL and time.monotonic() < until:
            time.sleep(0.2)
            if self._append(durable):
                return True
        with contextlib.suppress(OSError):
            drop_reserve(self._path)
        waiting = sum(map(len, self._unwritten))
        while waiting > RESERVE_BYTES // 2 and len(self._unwritten) > 1:
            waiting -= len(self._unwritten.popleft())
        return self._append(durable)

    def _append(self, durable: bool) -> bool:
        try:
            self._append_all(durable)
        except OSError as error:
            # A run that was deleted ends; a workspace that is away as a whole is on a disk that may come back.
            if isinstance(error, FileNotFoundError) and self._path.parents[1].is_dir():
                raise
            self.refusal = error.with_traceback(None)
            return False
        self.refusal = None
        return True

    def _append_all(self, durable: bool) -> None:
        # Line by line and unbuffered: what is on the disk is known when one fails, and is not written again.
        with self._path.open("ab", buffering=0) as file:
            if self._is_torn:
                # What a failed write may have left of a line gets an end of its own.
                _write_whole(file, b"\n")
            while self._unwritten:
                self._is_torn = True
                _write_whole(file, self._unwritten[0])
                self._is_torn = False
                self._unwritten.popleft()
            if durable:
                os.fsync(file.fileno())


def _write_whole(file: RawIOBase, line: bytes) -> None:
    """On a disk that gets full a write takes a part, and only the next one fails."""
    left = memoryview(line)
    while left:
        left = left[file.write(left) or 0 :]


def make_reserve(journal: Path) -> None:
    """Keep room on the disk for the last event of a run that waits or works; where there is none now, it has to do without."""
    # Not zeros: some file systems store those in no space at all.
    with contextlib.suppress(OSError), _reserve(journal).open("xb") as file:
        file.write(os.urandom(RESERVE_BYTES))


def drop_reserve(journal: Path) -> None:
    """Give the room back."""
    _reserve(journal).unlink(missing_ok=True)


def _reserve(journal: Path) -> Path:
    return journal.with_name(".reserve")


def _end_broken_line(path: Path) -> None:
    """After a crash in the middle of a line the next event must start a line of its own."""
    try:
        with path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        path.touch()


class JournalReader:
    """Reads events as they come; every call gives the new ones, so any number of pages can follow."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._lines = GrowingLines(path, offset)

    @property
    def offset(self) -> int:
        """Bytes read so far; the version of what was read."""
        return self._lines.offset

    def read(self) -> Iterator[Event]:
        """The events since the last call."""
        for line in self._lines.read():
            event = from_line(line)
            if event is not None:
                yield event


def read_events(path: Path) -> list[Event]:
    """All events of a journal; empty where there is none yet."""
    return list(JournalReader(path).read())
