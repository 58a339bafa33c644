"""Rows of a file, one after the other, whatever the file holds: never more of it in memory than a row or a batch.

Every reader yields `(number, value)`: the row as a mapping, or the RowProblem that it is. Numbers count from 1 as an editor
does: lines of a JSONL, rows of everything else.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.catalog.formats.transcript import begins_question
from qlora_ui.data.json_errors import decode
from qlora_ui.data.json_rows import read_json_file, read_jsonl
from qlora_ui.data.parquet_rows import read_parquet
from qlora_ui.data.row_stream import BLOCK, MAX_ROW_BYTES, Item, Notice, Progress, too_long
from qlora_ui.data.table_rows import read_table
from qlora_ui.data.text_encoding import encoding_of


def read_rows(path: Path, file_type: str, progress: Progress, notice: Notice) -> Iterator[Item]:
    """The rows of a file of that type (see `sniff.type_of_file`); raises DataError where nothing of it can be read."""
    match file_type:
        case "jsonl":
            return read_jsonl(path, progress, notice)
        case "json":
            return read_json_file(path, progress, notice)
        case "csv" | "tsv":
            return read_table(path, file_type, progress, notice)
        case "parquet":
            return read_parquet(path, progress)
        case _:
            return read_paragraphs(path, progress, notice)


def read_paragraphs(path: Path, progress: Progress, notice: Notice) -> Iterator[Item]:
    """A text file: a row for each paragraph, since a blank line is the only mark that plain text has.

    Where the text begins with a question that is marked as one, a row is all up to the next such: blank lines stand within them too.
    """
    is_western = encoding_of(path, notice) == "cp1252"
    number, line_number, num_bytes = 0, 0, 0
    gap, lines = "", list[str]()
    problem: RowProblem | None = None
    has_questions: bool | None = None
    with path.open("rb", buffering=BLOCK) as file:
        while True:
            raw = file.readline(MAX_ROW_BYTES + 1)
            line_number += 1
            progress.done_bytes += len(raw)
            line, found = "", None
            try:
                line = _text_of_line(raw.removeprefix(codecs.BOM_UTF8) if line_number == 1 else raw, is_western)
            except RowProblem as error:
                found = RowProblem(error.code, f"line {line_number}: {error.what}", fix=error.fix)
            if raw and found is None and not line.strip():
                gap = gap + line if has_questions else "\n"
                continue
            if has_questions is None and raw:
                has_questions = begins_question(line)
                words = "a row is a question and all up to the next" if has_questions else "every paragraph (up to a blank line) is a row"
                notice("DATA-PARAGRAPHS", f"Plain text: {words}.")
            if not raw or (gap and not (has_questions and not begins_question(line))):
                if lines or problem:
                    number += 1
                    yield number, problem or {"text": "".join(lines).strip("\n")}
                if not raw:
                    return
                lines, num_bytes, problem, gap = [], 0, None, ""
            num_bytes += len(gap) + len(raw)
            if found is None and num_bytes > MAX_ROW_BYTES:
                found = RowProblem("DATA-LIMIT", f"line {line_number}: {too_long(num_bytes).what}", fix=too_long(num_bytes).fix)
            problem = problem or found
            if problem is None:
                lines += [gap, line]  # Of a row with a problem no more is kept.
            gap = ""


def _text_of_line(raw: bytes, is_western: bool) -> str:
    """A line of a text; raises RowProblem."""
    if len(raw) > MAX_ROW_BYTES:
        raise too_long(len(raw))
    line = raw.decode("cp1252", "replace") if is_western else decode(raw)
    if "\0" in line:
        raise RowProblem("DATA-CTRL", "has a NUL character", fix="Remove it.")
    # How a system ends its lines is no part of the text: a model would learn it.
    return line[:-2] + "\n" if line.endswith("\r\n") else line
