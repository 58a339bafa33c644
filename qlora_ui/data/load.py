"""From the data settings to checked conversations: sources, slices, weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson

from qlora_ui.base.errors import DataError, Problem
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent
from qlora_ui.data.folders import DataFolders
from qlora_ui.data.parse import Peek, parse_file, peek_file
from qlora_ui.data.report import UNREAD, DataReport, Finding, SourceReport, in_order
from qlora_ui.data.rows import Conversation
from qlora_ui.data.sources import SourceFile, files_of
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource


class RowFile:
    """The standard rows of one file, read from the disk as they are asked for."""

    def __init__(self, report: SourceReport) -> None:
        self.report = report
        self._folder = Path(report.folder)

    def __len__(self) -> int:
        return self.report.num_rows

    @property
    def is_there(self) -> bool:
        """Whether its rows are still kept: what nobody has used for long is removed for want of room."""
        return self._folder.is_dir()

    @cached_property
    def _offsets(self) -> np.ndarray[Any, Any]:
        return np.fromfile(self._folder / "offsets.bin", dtype=np.int64)

    @cached_property
    def numbers(self) -> np.ndarray[Any, Any]:
        """The rows' numbers in the file, from 1."""
        return np.fromfile(self._folder / "numbers.bin", dtype=np.int64)

    @cached_property
    def _lines(self) -> np.ndarray[Any, Any]:
        return np.memmap(self._folder / "rows.jsonl", dtype=np.uint8, mode="r")

    def line(self, index: int) -> bytes:
        """A row as JSON."""
        start = int(self._offsets[index])
        end = int(self._offsets[index + 1]) if index + 1 < len(self._offsets) else len(self._lines)
        return self._lines[start:end].tobytes()

    def __getitem__(self, index: int) -> Conversation:
        try:
            value = orjson.loads(self.line(index))
        except orjson.JSONDecodeError:  # Integers beyond 64 bits in a tool's arguments.
            value = json.loads(self.line(index))
        return Conversation.from_dict(value, self.report.name, int(self.numbers[index]))


class Conversations(Sequence[Conversation]):
    """The conversations of one pass, read as they are asked for; a gigabyte of rows costs no memory."""

    def __init__(self, files: Sequence[RowFile], file_numbers: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
        self.files = tuple(files)
        self.file_numbers = file_numbers
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Conversations: ...
    def __getitem__(self, index: int | slice) -> Conversation | Conversations:
        if isinstance(index, slice):
            return Conversations(self.files, self.file_numbers[index], self.rows[index])
        return self.files[int(self.file_numbers[index])][int(self.rows[index])]

    def __iter__(self) -> Iterator[Conversation]:
        for index in range(len(self)):
            yield self[index]

    def position_of(self, row: int, source: str = "") -> int | None:
        """Where a row stands by its number in its file, as findings give it; None where it is not among these. Reads no row."""
        for number, file in enumerate(self.files):
            inside = np.flatnonzero(file.numbers == row)
            if source in ("", file.report.name) and len(inside):
                found = np.flatnonzero((self.file_numbers == number) & (self.rows == inside[0]))
                if len(found):
                    return int(found[0])
        return None

    def take(self, indices: np.ndarray[Any, Any] | Sequence[int]) -> Conversations:
        """The conversations at some positions, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Conversations(self.files, self.file_numbers[chosen], self.rows[chosen])


@dataclass(frozen=True, slots=True)
class Loaded:
    """Conversations ready to be tokenized, and what is known about them."""

    conversations: Conversations
    report: DataReport


def inspect(
    data: DataSection, workspace: DataFolders, *, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never
) -> DataReport:
    """The report on the data, whatever its verdict.

    Raises DataError where a source cannot be read at all, with every such source; and Cancelled.
    """
    return load_anyway(data, workspace, on_progress=on_progress, is_cancelled=is_cancelled).report


def load_conversations(
    data: DataSection, workspace: DataFolders, *, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never
) -> Loaded:
    """The conversations of one pass: slices taken, sources mixed by weight.

    Raises DataError with all problems where the data cannot be trained on, and Cancelled.
    """
    loaded = load_anyway(data, workspace, on_progress=on_progress, is_cancelled=is_cancelled)
    loaded.report.raise_if_not_trainable()
    return loaded


def peek(source: DataSource, workspace: DataFolders, num_rows: int = 5) -> Peek:
    """The columns and first rows of a source whatever its format, for the table in which columns are mapped; raises DataError."""
    return peek_file(files_of(source, workspace)[0].path, workspace, num_rows)


def load_anyway(
    data: DataSection, workspace: DataFolders, *, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never
) -> Loaded:
    """`load_conversations` for looking at rows: usable rows are given even where others stop the training."""
    if not data.sources:
        raise DataError("No dataset is chosen.", where="data.sources", fix="Choose a file, the built-in set or an id.", code="DATA-NONE")
    files: list[RowFile] = []
    picked: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    problems: list[Problem] = []
    findings: list[Finding] = []
    for source in data.sources:
        try:
            mine = _read(source, data, workspace, on_progress, is_cancelled)
        except DataError as error:
            problems += error.problems
            continue
        picked.append(_pick(source, mine, len(files)))
        findings += _findings(source, mine, len(files), *picked[-1])
        files += mine
    if problems:
        raise DataError(problems=problems, code=problems[0].code)
    conversations = Conversations(files, np.concatenate([numbers for numbers, _ in picked]), np.concatenate([rows for _, rows in picked]))
    report = _report(data, files, findings, len(conversations))
    return Loaded(conversations, report)


def _read(
    source: DataSource, data: DataSection, workspace: DataFolders, on_progress: OnProgress, is_cancelled: IsCancelled
) -> list[RowFile]:
    return [
        RowFile(
            parse_file(
                file.path,
                workspace,
                source=source.id,
                name=_name(file, data),
                format_name=_format_name(source, data),
                mapping=data.mapping,
                on_progress=on_progress,
                is_cancelled=is_cancelled,
            )
        )
        for file in files_of(source, workspace, on_progress=on_progress, is_cancelled=is_cancelled)
    ]


def _name(file: SourceFile, data: DataSection) -> str:
    """What messages call a file: with its folder where another chosen one has the same name."""
    same = {other.id for other in data.sources if Path(other.id).name == file.path.name}
    return f"{file.path.parent.name}/{file.path.name}" if file.name == file.path.name and len(same) > 1 else file.name


def _format_name(source: DataSource, data: DataSection) -> str:
    """The format of a source's files. Columns are mapped by those of one file: beside it another is what its own rows are."""
    if data.format != "columns":
        return data.format
    own = [other for other in data.sources if not other.id.startswith("builtin:")]
    return "auto" if source not in own or (data.mapping and len(own) > 1) else "columns"


def _pick(source: DataSource, files: Sequence[RowFile], first: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """File numbers and rows of one source: its slice, then as often as its weight says."""
    lengths = [len(file) for file in files]
    numbers = np.repeat(np.arange(first, first + len(files), dtype=np.int32), lengths)
    rows = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    wanted = source.row_range(len(rows))
    numbers, rows = numbers[wanted.start : wanted.stop], rows[wanted.start : wanted.stop]
    if source.weight != 1:
        whole, rest = divmod(source.weight * len(rows), max(len(rows), 1))
        # The remainder is drawn by chance, but always the same rows: a mix is part of what makes a run repeatable.
        extra = np.sort(np.random.default_rng(0).permutation(len(rows))[: round(rest)])
        chosen = np.concatenate([*[np.arange(len(rows))] * int(whole), extra])
        numbers, rows = numbers[chosen], rows[chosen]
    return numbers, rows


def _findings(
    source: DataSource, files: Sequence[RowFile], first: int, numbers: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
) -> list[Finding]:
    """What is to be said of a source's files; what cannot be read after the last row that its slice takes stops nothing.

    `numbers` and `rows` are those of `_pick`.
    """
    found = [(number, finding) for number, file in enumerate(files, first) for finding in file.report.findings]
    num_all = sum(map(len, files))
    if len(rows) and source.row_range(num_all).stop < num_all:
        last_file = int(numbers.max())
        last_row = int(files[last_file - first].numbers[rows[numbers == last_file].max()])
        is_share = "%" in source.rows

        def is_after(number: int, finding: Finding) -> bool:
            if finding.severity != "error" or finding.is_read or not finding.rows or (is_share and finding.code == UNREAD):
                return False
            return (number, finding.rows[0]) > (last_file, last_row)

        found = [(number, finding) for number, finding in found if not is_after(number, finding)]
    return [finding for _, finding in found]


def _report(data: DataSection, files: Sequence[RowFile], findings: Sequence[Finding], num_rows: int) -> DataReport:
    if not num_rows:
        empty = Finding("DATA-EMPTY", "error", 0, (), "The chosen slice holds no rows.", fix="Widen or empty the slice of rows.")
        findings = [*findings, empty]
    keys = (
        [[source.id, source.config, source.split, source.weight, source.rows] for source in data.sources],
        [file.report.content_hash for file in files],
    )
    settings = [keys, data.format, sorted(data.mapping.items())]
    content_hash = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return DataReport(tuple(file.report for file in files), num_rows, in_order(findings), content_hash)
