"""Reading a file in a child process that may hold 1 GiB and no more; the result is kept by content, so a file is read once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from qlora_ui.base import children
from qlora_ui.base.bounded import keep_within, mark_used
from qlora_ui.base.errors import DataError, Problem, QloraUiError
from qlora_ui.base.files import free_bytes, read_json, safe_stem, write_json
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import GIB, MIB, format_bytes
from qlora_ui.data.folders import DataFolders
from qlora_ui.data.limits import MEMORY_BYTES
from qlora_ui.data.report import SourceReport
from qlora_ui.data.row_writer import has_all_rows
from qlora_ui.data.sniff import type_of_file
from qlora_ui.data.unpack import is_packed

PARSER_VERSION = 9
"""Part of the cache's key; raised when the same bytes would give another result."""
_BASE_S = 60.0
_SLOWEST_BYTES_PER_S = 2_000_000
_BLOCK = 4 * MIB
MOST_UNPACKED_BYTES = 8 * GIB
"""A small archive can hold any amount of the same letter."""
SPARE_BYTES = 64 * MIB
"""Stays free for what a run writes meanwhile."""
_UNPACKED_BYTES_PER_S = 20_000_000


@dataclass(frozen=True, slots=True)
class Peek:
    """A first look at a file, for mapping its columns."""

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    """The first rows as text, long cells shortened."""
    guess: Mapping[str, str]
    """Role (user, assistant, system) to the column that looks like it."""


def parse_file(
    path: Path,
    workspace: DataFolders,
    *,
    source: str = "",
    name: str = "",
    format_name: str = "auto",
    mapping: Mapping[str, str] | None = None,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> SourceReport:
    """Read a file into standard rows with findings; a second call with the same content is answered from the cache.

    Raises DataError where nothing of it can be used, and Cancelled.
    """
    name = name or path.name
    type_of_file(path)
    before = _state(path)
    content_hash = _hash(path, name, on_progress, is_cancelled)
    settings = json.dumps([PARSER_VERSION, content_hash, path.suffix.lower(), format_name, sorted((mapping or {}).items())])
    key = hashlib.sha256(settings.encode()).hexdigest()[:32]
    folder = workspace.rows_and_tokens[0] / key
    known = read_json(folder / "report.json")
    if known and not has_all_rows(folder, known["num_rows"]):
        # Damaged, as after a power cut: left there, it would keep its place from the one that is made anew.
        shutil.rmtree(folder, ignore_errors=True)
        known = None
    if known:
        mark_used(folder)
        # The same content may have been read under another name.
        findings = [{**finding, "source": name} for finding in known["findings"]]
        return SourceReport.from_dict({**known, "source": source, "name": name, "findings": findings, "folder": str(folder)})
    staged = folder.with_name(f".{key}-{secrets.token_hex(4)}")
    root = workspace.rows_and_tokens[0].parents[1]
    if not root.is_dir():  # moved, or on a disk that is away: a folder made in its place would be in the way when it comes back
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    staged.mkdir(parents=True)
    job = {
        "path": str(path.resolve()),
        "source": source,
        "name": name,
        "format": format_name,
        "mapping": dict(mapping or {}),
        "folder": str(staged),
        "content_hash": content_hash,
        "cpu_s": _limit_s(path),
    }
    try:
        value = _Child(job, on_progress, is_cancelled).report()
        if _state(path) != before:
            # Kept under the hash of other bytes, these rows would be learned whenever that content is met again.
            raise DataError("The file changed while it was read.", where=name, fix="Wait until it is written whole.", code="DATA-CHANGED")
        write_json(staged / "report.json", value)
        try:
            os.replace(staged, folder)
        except OSError:  # Another thread read the same file at the same time and was faster.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    keep_within(workspace.rows_and_tokens)
    return SourceReport.from_dict({**value, "folder": str(folder)})


def peek_file(path: Path, workspace: DataFolders, num_rows: int = 5) -> Peek:
    """The columns and first rows of a file whatever its format, read in the confined child; raises DataError."""
    type_of_file(path)
    folder = workspace.temp / f"peek-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    job = {"path": str(path.resolve()), "name": path.name, "folder": str(folder), "cpu_s": _BASE_S, "peek": num_rows}
    try:
        value = _Child(job, silent, never).report()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Peek(tuple(value["columns"]), tuple(value["rows"]), value["guess"])


@contextlib.contextmanager
def unpacked(path: Path, workspace: DataFolders) -> Iterator[Path]:
    """The file, or for the length of the block what is packed in it where it is an archive of one data file; raises DataError."""
    if not is_packed(path):
        yield path
        return
    folder = workspace.temp / f"unpack-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    # Whoever keeps it copies it once more.
    most = min(MOST_UNPACKED_BYTES, (free_bytes(folder) - SPARE_BYTES) // 2)
    job = {"path": str(path.resolve()), "name": path.name, "folder": str(folder), "cpu_s": _BASE_S + most / _UNPACKED_BYTES_PER_S}
    try:
        name = _Child({**job, "most_bytes": max(most, 1)}, silent, never).report()["name"]
        if is_packed(folder / "unpacked"):
            what, fix = "In the archive is another one.", "Unpack it, and upload the file in it."
            raise DataError(what, where=path.name, fix=fix, code="DATA-PACKED")
        # A name is what an archive says, too.
        yield (folder / "unpacked").replace(folder / (safe_stem(name) or "rows"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hash(path: Path, name: str, on_progress: OnProgress, is_cancelled: IsCancelled) -> str:
    digest = hashlib.sha256()
    size = max(path.stat().st_size, 1)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            stop_if(is_cancelled, f"Reading {name}")
            digest.update(block)
            on_progress(f"Hashing {name}", 0.1 * file.tell() / size)
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; nothing where it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _limit_s(path: Path) -> float:
    return _BASE_S + path.stat().st_size / _SLOWEST_BYTES_PER_S


class _Child:
    """The child and the watch over it."""

    def __init__(self, job: dict[str, Any], on_progress: OnProgress, is_cancelled: IsCancelled) -> None:
        self._job = job
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._name: str = job["name"]

    def report(self) -> dict[str, Any]:
        """What the child says; raises DataError for its error, its death or a limit."""
        with (Path(self._job["folder"]) / "complaints.txt").open("wb+") as self._complaints, self._started() as process:
            self._tell(process)
            return self._listen(process)

    def _started(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        environment = children.environment_without_secrets()
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._complaints}
        command = children.isolated("from qlora_ui.data.child import main; main()")
        return children.child(command, **streams, env=environment, cwd=self._job["folder"])

    def _tell(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        threading.Thread(target=self._pump, args=(process.stdout,), name="data-child", daemon=True).start()
        try:
            process.stdin.write(json.dumps(self._job).encode() + b"\n")
            process.stdin.close()
        except OSError:
            pass  # It died at once; `_listen` says so.

    def _pump(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _listen(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        deadline = time.monotonic() + float(self._job["cpu_s"])
        watched = psutil.Process(process.pid)
        while True:
            stop_if(self._is_cancelled, f"Reading {self._name}")
            self._check_limits(watched, deadline)
            try:
                line = self._lines.get(timeout=0.05)
            except queue.Empty:
                continue
            if line is None:
                raise self._died(process.wait())
            said = json.loads(line)
            if "report" in said:
                report: dict[str, Any] = said["report"]
                return report
            if "error" in said:
                problems = [Problem(**problem) for problem in said["error"]["problems"]]
                raise DataError(problems=problems, code=said["error"]["code"])
            self._on_progress(f"Reading {self._name}: {said['rows']:,} rows", 0.1 + 0.9 * said["progress"])

    def _check_limits(self, watched: psutil.Process, deadline: float) -> None:
        try:
            used = watched.memory_info().rss
        except psutil.Error:
            return
        if used > MEMORY_BYTES:
            raise self._limit(f"Reading the file takes more than {format_bytes(MEMORY_BYTES)} of memory.")
        if time.monotonic() > deadline:
            raise self._limit("Reading the file takes too long.")

    def _limit(self, what: str) -> DataError:
        return DataError(what, where=self._name, fix="Split the file, or write it as JSONL.", code="DATA-LIMIT")

    def _died(self, code: int) -> QloraUiError:
        self._complaints.seek(0)
        last = self._complaints.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        # Its last words had no room either, mostly.
        if "No space left" in last or free_bytes(Path(self._job["folder"])) < MIB:
            why, fix = (
                "The rows could not be kept while they were read",
                "Free some space, then choose it again; the Runs tab says what takes it",
            )
            return DataError("The disk is full.", where=self._name, why=why, fix=fix, code="disk-full")
        out_of_memory = "MemoryError" in last or "bad_alloc" in last
        ended = f"signal {-code}" if code < 0 else f"code {code}"
        return DataError(
            "Reading the file needs more memory than it may have." if out_of_memory else f"The reader was ended by this file ({ended}).",
            where=self._name,
            why=last[:300] if code > 0 and not out_of_memory else "The file is damaged, or made to harm the program that opens it.",
            fix="Export it again, best as JSONL.",
            code="DATA-LIMIT",
        )
