"""Rows of a file, one after the other, whatever the file holds: never more of it in memory than a row or a batch.

Every reader yields `(number, value)`: the row as a mapping, or the RowProblem that it is. Numbers count from 1 as an editor
does: lines of a JSONL, rows of everything else.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.data.json_errors import decode
from qlora_ui.data.json_rows import read_json_file, read_jsonl
from qlora_ui.data.parquet_rows import read_parquet
from qlora_ui.data.row_stream import BLOCK, MAX_ROW_BYTES, Item, Notice, Progress, too_long
from qlora_ui.data.table_rows import read_table


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
    """A text file: a row for each paragraph, since a blank line is the only mark that plain text has."""
    notice("DATA-PARAGRAPHS", "Plain text: every paragraph (up to a blank line) is a row.")
    number, line_number, lines, num_bytes = 0, 0, [], 0
    with path.open("rb", buffering=BLOCK) as file:
        while True:
            raw = file.readline(MAX_ROW_BYTES + 1)
            line_number += 1
            progress.done_bytes += len(raw)
            num_bytes += len(raw)
            try:
                line = decode(raw.removeprefix(codecs.BOM_UTF8) if line_number == 1 else raw)
                if "\0" in line:
                    raise RowProblem("DATA-CTRL", f"line {line_number} has a NUL character", fix="Remove it.")
                if num_bytes > MAX_ROW_BYTES:
                    raise too_long(num_bytes)
            except RowProblem as problem:
                yield number + 1, RowProblem(problem.code, f"line {line_number}: {problem.what}", fix=problem.fix)
                return
            if line.strip():
                lines.append(line)
                continue
            if lines:
                number += 1
                yield number, {"text": "".join(lines).strip("\n")}
            if not raw:
                return
            lines, num_bytes = [], 0
