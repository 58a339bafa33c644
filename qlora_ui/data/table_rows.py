"""Rows of CSV and TSV tables; encoding and delimiter are found."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import format_bytes
from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.data.row_stream import MAX_COLUMNS, MAX_ROW_BYTES, Item, Notice, Progress
from qlora_ui.data.text_encoding import STRAY, encoding_of

_ESCAPED = re.compile(r'\\"(?![,;\t|\r\n]|$)')
_DOUBLED = re.compile(r'[^,;\t|\r\n"]""')
"""A quote inside a text as a backslash writes it, and as the standard does."""


def _dialect(head: str, file_type: str) -> str:
    """The delimiter: the sign that splits the header and the lines after it into equally many fields."""
    lines = [line for line in head.splitlines()[:20] if line.strip()]
    if file_type == "tsv" and "\t" in (lines[0] if lines else "\t"):
        return "\t"
    best, best_score = ",", 0.0
    for sign in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines, delimiter=sign)]
        if not counts or counts[0] < 2:
            continue
        score = counts[0] * sum(count == counts[0] for count in counts) / len(counts)
        if score > best_score:
            best, best_score = sign, score
    return best


def read_table(path: Path, file_type: str, progress: Progress, notice: Notice) -> Iterator[Item]:
    """Rows of a table with a header; raises DataError where the header is unusable."""
    encoding = encoding_of(path, notice)
    name = path.name
    # A byte that is not UTF-8 is kept to be told of its row.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    with path.open("r", encoding=encoding, errors=errors, newline="") as file:
        head = file.read(65536)
        file.seek(0)
        delimiter = _dialect(head, file_type)
        if delimiter != ("," if file_type == "csv" else "\t"):
            shown = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}[delimiter]
            usual = "a comma" if file_type == "csv" else "a tab"
            notice("DATA-DELIMITER", f"The columns are separated by {shown} ( {delimiter.strip() or 'tab'} ), not by {usual}.")
        csv.field_size_limit(MAX_ROW_BYTES)
        size = path.stat().st_size
        num_before = 0
        if head.lstrip("\ufeff").lower().startswith("sep="):
            file.readline()  # A spreadsheet's own line that names the delimiter.
            num_before = 1
        lines = _counted(file, progress)
        # Some programs write a quote inside a text as \" instead of doubling it.
        escape = "\\" if _ESCAPED.search(head) and not _DOUBLED.search(head) else None
        reader = csv.reader(lines, delimiter=delimiter, escapechar=escape, strict=True)
        title = _title(islice(io.StringIO(head, newline=""), num_before, None), delimiter)
        try:
            filled = (row for row in reader if _is_filled(row))
            header = next(filled, [])
            if title:
                notice("DATA-TITLE", f"The first line is a title (“{title[:80]}”) and was passed over; the columns are named below it.")
                header = next(filled, [])
        except csv.Error as error:
            raise _csv_error(name, error) from None
        _check_header(header, name)
        number = num_empty = 0
        while True:
            number += 1
            first = num_before + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                # The reader goes on with the line after the one that it gave up at.
                yield number, _csv_problem(first, num_before + reader.line_num, error)
                continue
            progress.done_bytes = min(progress.done_bytes, size)
            if not _is_filled(cells):
                number -= 1
                if cells:  # A spreadsheet's empty row, where a blank line is nothing but the end of the file.
                    num_empty += 1
                    words = "1 row of the table is empty" if num_empty == 1 else f"{num_empty:,} rows of the table are empty"
                    notice("DATA-EMPTY-ROWS", f"{words} in every column and not counted.")
                continue
            yield number, _cells(header, cells, _place(first, num_before + reader.line_num), delimiter)


def reads_as_text(cell: str) -> bool:
    """Whether it is too much for a column's name: a table without names begins with its first row."""
    return len(cell) > 30 or cell[-1:] in (".", "?", "!")


def _title(lines: Iterable[str], delimiter: str) -> str:
    """The title that stands in the first cell above the columns' names, as people write over a table; empty where there is none."""
    filled = (row for row in csv.reader(lines, delimiter=delimiter) if _is_filled(row))
    first, second = next(filled, []), next(filled, [])
    named = [cell for cell in second if _is_filled([cell])]
    is_alone = len(first) > 1 and _is_filled(first[:1]) and not _is_filled(first[1:])
    return first[0].strip() if is_alone and len(named) > 1 and not any(map(reads_as_text, named)) else ""


def _is_filled(cells: list[str]) -> bool:
    return any(cell and not cell.isspace() for cell in cells)


def _counted(file: Any, progress: Progress) -> Iterator[str]:
    while line := file.readline(MAX_ROW_BYTES):
        progress.done_bytes += len(line)
        yield line


def _check_header(header: list[str], name: str) -> None:
    named = [STRAY.sub("\ufffd", column).strip() for column in header]
    header[:] = [column or f"column {place}" for place, column in enumerate(named, 1)]
    if not any(named):
        raise DataError("The file has no header and no rows.", where=name, fix="Choose a file with rows.", code="DATA-EMPTY")
    if len(header) > MAX_COLUMNS:
        raise DataError(
            f"The file has {len(header)} columns; {MAX_COLUMNS} is the limit.",
            where=name,
            fix="Keep the columns with the texts.",
            code="DATA-LIMIT",
        )
    double = next((column for position, column in enumerate(header) if column in header[:position]), None)
    if double is not None:
        raise DataError(
            f"The column “{double}” is there twice.", where=f"{name} line 1", fix="Rename or delete one of them.", code="DATA-CSV"
        )


def _place(first: int, last: int) -> str:
    return f"line {first}" if first >= last else f"the row on lines {first} to {last}"


def _cells(header: list[str], cells: list[str], place: str, delimiter: str) -> dict[str, Any] | RowProblem:
    if len(cells) > len(header) and not _is_filled(cells[len(header) :]):
        cells = cells[: len(header)]  # Spreadsheets write empty cells beside the table where there once was something.
    if len(cells) != len(header):
        return RowProblem(
            "DATA-CSV",
            f"{place} has {len(cells)} fields, the header has {len(header)}",
            fix=f"A text with “{delimiter}” in it must stand in double quotes."
            if len(cells) > len(header)
            else f"A text with a line break in it must stand in double quotes, and empty cells at the end need their “{delimiter}”: "
            "in a spreadsheet, delete the columns that are not needed.",
        )
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        if "\0" in cell:
            return RowProblem("DATA-CTRL", f"{place}: `{column}` has a NUL character", column, "Remove it or drop the row.")
        if not cell.isascii() and (stray := STRAY.search(cell)):
            what = f"{place}: `{column}` has a byte (0x{ord(stray[0]) - 0xDC00:02x}) that is not UTF-8"
            return RowProblem("DATA-UTF8", what, column, "Correct the letter there, or drop the row.")
    return row


def _csv_problem(first: int, last: int, error: csv.Error) -> RowProblem:
    text, line = str(error), _place(first, last)
    is_last = False
    if "unexpected end" in text:
        what = f"line {first}: a double quote is opened and never closed"
        is_last = last > first  # The lines after it went into the text that it opens.
    elif "expected after" in text:
        what = f"{line}: text stands after a closing quote; a quote inside a text must be doubled"
    elif "field larger" in text:
        return RowProblem("DATA-LIMIT", f"{line}: a field is longer than {format_bytes(MAX_ROW_BYTES)}", fix="Split the row.")
    elif "NUL" in text:
        return RowProblem("DATA-CTRL", f"{line} has a NUL character", fix="Remove it.")
    else:
        what = f"{line}: {text}"
    return RowProblem("DATA-CSV", what, fix="Correct the quotes there, or save the table as CSV again.", is_last=is_last)


def _csv_error(name: str, error: csv.Error) -> DataError:
    problem = _csv_problem(1, 1, error)
    return DataError(problem.what, where=name, fix=problem.fix, code=problem.code)
