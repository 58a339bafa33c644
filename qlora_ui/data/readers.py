"""Rows of a file, one after the other, whatever the file holds: never more of it in memory than a row or a batch.

Every reader yields `(number, value)`: the row as a mapping, or the RowProblem that it is. Numbers count from 1 as an editor
does: lines of a JSONL, rows of everything else.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import format_bytes
from qlora_ui.catalog.formats.format import RowProblem, kind_of
from qlora_ui.data.json_errors import MAX_DEPTH, careful_loads, decode, depth_problem, explain, too_deep

MAX_ROW_BYTES = 16 << 20
MAX_COLUMNS = 1000
_ONE_OBJECT_BYTES = 64 << 20
_BLOCK = 1 << 20

Item = tuple[int, "dict[str, Any] | RowProblem"]
Notice = Callable[[str, str], None]
"""Takes a code and a sentence: something worth a note, such as the encoding that was found."""


class Progress:
    """How far a reader is."""

    def __init__(self) -> None:
        self.done_bytes = 0
        """Bytes of the file that were read."""
        self.unpacked_bytes = 0
        """What they are unpacked, where that is more."""


def read_rows(path: Path, file_type: str, progress: Progress, notice: Notice) -> Iterator[Item]:
    """The rows of a file of that type (see `sniff.type_of_file`); raises DataError where nothing of it can be read."""
    match file_type:
        case "jsonl":
            return _jsonl(path, progress, notice)
        case "json":
            return _json(path, progress, notice)
        case "csv" | "tsv":
            return _csv(path, file_type, progress, notice)
        case "parquet":
            return _parquet(path, progress)
        case _:
            return _paragraphs(path, progress, notice)


def _row(value: Any) -> dict[str, Any] | RowProblem:
    if type(value) is dict:
        return value
    return RowProblem("DATA-SHAPE", f"is {kind_of(value)}; each row must be an object", fix="Write an object with named fields.")


def _long(num_bytes: int) -> RowProblem:
    limit = format_bytes(MAX_ROW_BYTES)
    return RowProblem("DATA-LIMIT", f"is {format_bytes(num_bytes)} long; {limit} is the limit", fix="Split it into several rows.")


# JSON lines ----------------------------------------------------------------------------------------------------------


def _jsonl(path: Path, progress: Progress, notice: Notice) -> Iterator[Item]:
    needles: dict[tuple[str, ...], list[bytes]] = {}
    with path.open("rb", buffering=_BLOCK) as file:
        number = 0
        while raw := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            progress.done_bytes += len(raw)
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                raw = raw[3:]
                notice("DATA-BOM", "The file begins with a byte order mark, which was skipped.")
            if len(raw) > MAX_ROW_BYTES and not raw.endswith(b"\n"):
                length = len(raw) + _skip_line(file)
                progress.done_bytes += length - len(raw)
                yield number, _long(length)
            elif not raw.isspace():
                yield number, _line(raw, needles)


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while rest := file.readline(_BLOCK):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _line(raw: bytes, needles: dict[tuple[str, ...], list[bytes]]) -> dict[str, Any] | RowProblem:
    try:
        if b"\0" in raw or b"\\u0000" in raw:
            place = f" at column {raw.index(0) + 1}" if b"\0" in raw else ""
            return RowProblem("DATA-CTRL", f"has a NUL character{place}", fix="Remove it or drop the row.")
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = careful_loads(raw.rstrip(b"\r\n"))
        if type(value) is not dict:
            return _row(value)
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and too_deep(value):
            return depth_problem()
        shape = tuple(value)
        searched = needles.get(shape)
        if searched is None:
            searched = [orjson.dumps(key) for key in shape]
            if len(needles) < 1000:
                needles[shape] = searched
        for needle in searched:
            if raw.count(needle) > 1:
                careful_loads(raw)  # Raises for a key that is there twice; the parser above silently takes the last.
                break
    except RowProblem as problem:
        return problem
    return value


# JSON ----------------------------------------------------------------------------------------------------------------


def _json(path: Path, progress: Progress, notice: Notice) -> Iterator[Item]:
    """A list of objects, objects one after the other, or one object; read value by value."""
    values = _Values(path, progress, notice)
    is_list = values.peek() == "["
    if is_list:
        values.skip("[")
    number = 0
    single: Any = None
    while (sign := values.peek()) and not (is_list and sign == "]"):
        number += 1
        try:
            value = values.next_value()
        except RowProblem as problem:
            # The place after a broken value is unknown, so this is the last row that can be spoken of.
            yield number, problem
            return
        if number == 1 and not is_list:
            single = value
        else:
            if single is not None:
                yield 1, _row(single)
                single = None
            yield number, _row(value)
        if is_list and values.peek() not in ("]", ","):
            yield number + 1, RowProblem("DATA-JSON", f"line {values.line}: the list is not finished", fix="Export the file again.")
            return
        values.skip(",")
    if single is None:
        return
    rows = _wrapped(single)
    if rows is None:
        notice("DATA-ONE-OBJECT", "The file is one object, taken as one row.")
        yield 1, _row(single)
        return
    for position, value in enumerate(rows, 1):
        yield position, _row(value)


def _wrapped(value: Any) -> list[Any] | None:
    """The rows of `{"data": [...]}` and the like: the only list of objects in an object that is no conversation itself."""
    if not isinstance(value, dict) or any(name in value for name in ("messages", "conversations", "prompt", "instruction", "text")):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if len(lists) != 1:
        return None
    rows: list[Any] = lists[0]
    if all(isinstance(row, dict) and set(row) == {"row_idx", "row", "truncated_cells"} for row in rows[:3]):
        return [row["row"] for row in rows]  # The Hub's own row viewer wraps each row.
    return rows


class _Values:
    """JSON values of a file, one at a time, out of a buffer that grows only as far as one value needs."""

    def __init__(self, path: Path, progress: Progress, notice: Notice) -> None:
        self._file = path.open("rb", buffering=_BLOCK)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._progress = progress
        self._text = ""
        self._at = 0
        self._is_done = False
        self.line = 1
        self._nan = ""
        self._json = json.JSONDecoder(parse_constant=self._note_nan)
        self._fill()
        if self._text.startswith("\ufeff"):
            self._at = 1
            notice("DATA-BOM", "The file begins with a byte order mark, which was skipped.")

    def _note_nan(self, name: str) -> float:
        self._nan = name
        return float("nan")

    def _fill(self, num_bytes: int = _BLOCK) -> None:
        raw = self._file.read(num_bytes)
        self._progress.done_bytes += len(raw)
        self._is_done = not raw
        try:
            more = self._decoder.decode(raw, final=self._is_done)
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n", self._at) + raw[: error.start].count(b"\n")
            raise DataError(
                f"A byte (0x{error.object[error.start]:02x}) is not UTF-8.",
                where=f"{Path(self._file.name).name} line {line}",
                fix="Save the file as UTF-8.",
                code="DATA-UTF8",
            ) from None
        if "\0" in more:
            line = self.line + self._text.count("\n", self._at) + more[: more.index("\0")].count("\n")
            raise DataError(
                "A NUL character stands in the text.",
                where=f"{Path(self._file.name).name} line {line}",
                fix="Export the file again; it is damaged.",
                code="DATA-CTRL",
            )
        self.line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + more
        self._at = 0
        if self._is_done:
            self._file.close()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._is_done:
                return self._text[self._at : self._at + 1]
            self._fill()

    def skip(self, sign: str) -> None:
        """Step over `sign` if it comes next."""
        if self.peek() == sign:
            self._at += 1

    def next_value(self) -> Any:
        """The next value; raises RowProblem."""
        self._nan = ""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError:
                raise depth_problem() from None
            except json.JSONDecodeError as error:
                if not self._is_done and self._may_grow():
                    self._fill(max(_BLOCK, len(self._text) - self._at))
                    continue
                raise self._problem(error) from None
            except ValueError:
                raise RowProblem("DATA-JSON", "holds a number with too many digits", fix="Write it as text.") from None
            if end == len(self._text) and not self._is_done and not isinstance(value, dict | list | str):
                self._fill()  # A number may go on in the next block.
                continue
            break
        self._at = end
        if self._nan:
            raise RowProblem("DATA-FIELD", f"a value is {self._nan}, not text", fix="Fill it or drop the row.")
        if too_deep(value):
            raise depth_problem()
        return value

    def _may_grow(self) -> bool:
        if len(self._text) - self._at > _ONE_OBJECT_BYTES:
            raise _long(len(self._text) - self._at)
        return True

    def _problem(self, error: json.JSONDecodeError) -> RowProblem:
        start = self._text.rfind("\n", 0, error.pos) + 1
        end = self._text.find("\n", error.pos)
        line = self.line + self._text.count("\n", 0, error.pos)
        what, position = explain(self._text[start : end if end >= 0 else len(self._text)], error.msg, error.pos - start)
        return RowProblem("DATA-JSON", f"line {line}, column {position + 1}: {what}", fix="Correct the file there.")


# Tables --------------------------------------------------------------------------------------------------------------


def _encoding(path: Path, notice: Notice) -> str:
    """The text encoding of a table: by its mark, UTF-8 if every byte fits, else the usual one of old spreadsheets."""
    with path.open("rb") as file:
        head = file.read(4)
        if head.startswith(codecs.BOM_UTF8):
            return "utf-8-sig"
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            notice("DATA-ENCODING", "The file is UTF-16 and was read as such.")
            return "utf-16"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            notice("DATA-ENCODING", "The file is not UTF-8; it was read as Windows-1252. Look at the accents in the preview.")
            return "cp1252"
    return "utf-8"


def _dialect(head: str, file_type: str) -> str:
    """The delimiter: the sign that splits the header and the lines after it into equally many fields."""
    if file_type == "tsv":
        return "\t"
    lines = [line for line in head.splitlines()[:20] if line.strip()]
    best, best_score = ",", 0.0
    for sign in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines, delimiter=sign)]
        if not counts or counts[0] < 2:
            continue
        score = counts[0] * sum(count == counts[0] for count in counts) / len(counts)
        if score > best_score:
            best, best_score = sign, score
    return best


def _csv(path: Path, file_type: str, progress: Progress, notice: Notice) -> Iterator[Item]:
    encoding = _encoding(path, notice)
    name = path.name
    with path.open("r", encoding=encoding, errors="replace", newline="") as file:
        head = file.read(65536)
        file.seek(0)
        delimiter = _dialect(head, file_type)
        if file_type == "csv" and delimiter != ",":
            shown = {";": "a semicolon", "\t": "a tab", "|": "a bar"}[delimiter]
            notice("DATA-DELIMITER", f"The columns are separated by {shown} ( {delimiter.strip() or 'tab'} ), not by a comma.")
        csv.field_size_limit(MAX_ROW_BYTES)
        size = path.stat().st_size
        lines = _counted(file, progress)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next((row for row in reader if row), [])
        except csv.Error as error:
            raise _csv_error(name, 1, error) from None
        _check_header(header, name)
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield number, _csv_problem(reader.line_num, error)
                return
            progress.done_bytes = min(progress.done_bytes, size)
            if not cells:
                number -= 1
                continue
            yield number, _cells(header, cells, reader.line_num, delimiter)


def _counted(file: Any, progress: Progress) -> Iterator[str]:
    while line := file.readline(MAX_ROW_BYTES):
        progress.done_bytes += len(line)
        yield line


def _check_header(header: list[str], name: str) -> None:
    header[:] = [column.strip() for column in header]
    if not any(header):
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


def _cells(header: list[str], cells: list[str], line: int, delimiter: str) -> dict[str, Any] | RowProblem:
    if len(cells) != len(header):
        return RowProblem(
            "DATA-CSV",
            f"line {line} has {len(cells)} fields, the header has {len(header)}",
            fix=f"A text with “{delimiter}” in it must stand in double quotes.",
        )
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for column, cell in row.items():
        if "\0" in cell:
            return RowProblem("DATA-CTRL", f"line {line}: `{column}` has a NUL character", column, "Remove it or drop the row.")
        # A list of messages can only stand in a table as JSON inside a cell.
        if cell[:1] == "[" and column in ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected"):
            try:
                parsed = careful_loads(cell.encode())
            except RowProblem as problem:
                if column not in ("messages", "conversations", "conversation"):
                    continue
                return RowProblem(problem.code, f"line {line}: `{column}`: {problem.what}", column, problem.fix)
            if isinstance(parsed, list) and parsed and isinstance(parsed[0], dict):
                row[column] = parsed
    return row


def _csv_problem(line: int, error: csv.Error) -> RowProblem:
    text = str(error)
    if "unexpected end" in text:
        what = f"line {line}: a double quote is opened and never closed"
    elif "expected after" in text:
        what = f"line {line}: text stands after a closing quote; a quote inside a text must be doubled"
    elif "field larger" in text:
        return RowProblem("DATA-LIMIT", f"line {line}: a field is longer than {format_bytes(MAX_ROW_BYTES)}", fix="Split the row.")
    elif "NUL" in text:
        return RowProblem("DATA-CTRL", f"line {line} has a NUL character", fix="Remove it.")
    else:
        what = f"line {line}: {text}"
    return RowProblem("DATA-CSV", what, fix="Correct the quotes there, or save the table as CSV again.")


def _csv_error(name: str, line: int, error: csv.Error) -> DataError:
    problem = _csv_problem(line, error)
    return DataError(problem.what, where=name, fix=problem.fix, code=problem.code)


# Parquet -------------------------------------------------------------------------------------------------------------

_BATCH_ROWS = 32
_BATCH_BYTES = 128 << 20
_DECODED_RATIO = 100
_DECODED_FREE = 64 << 20


def _parquet(path: Path, progress: Progress) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, size = path.name, path.stat().st_size
    try:
        file = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
        num_rows, num_columns = file.metadata.num_rows, file.metadata.num_columns
    except (pa.ArrowException, OSError, MemoryError) as error:
        text = str(error)
        broken = "truncated" if "magic bytes" in text or "footer" in text else "damaged"
        raise DataError(f"The Parquet file is {broken}.", where=name, fix="Download or export it again.", code="DATA-PARQUET") from None
    if num_columns > MAX_COLUMNS:
        raise DataError(
            f"The file has {num_columns} columns; {MAX_COLUMNS} is the limit.", where=name, fix="Keep the columns with the texts.",
            code="DATA-LIMIT",
        )  # fmt: skip
    number, decoded, batch_number = 0, 0, 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            batch_number += 1
            decoded += batch.nbytes
            progress.unpacked_bytes = decoded
            if batch.nbytes > _BATCH_BYTES or (decoded > _DECODED_FREE and decoded > _DECODED_RATIO * size):
                raise DataError(
                    f"Unpacked, the file is over {format_bytes(decoded)} by batch {batch_number}; on the disk it has {format_bytes(size)}.",
                    where=f"{name} row {number + 1}",
                    why="Such a file is made to fill the memory of who opens it.",
                    fix="Use another file.",
                    code="DATA-LIMIT",
                )
            for row in batch.to_pylist():
                number += 1
                yield number, _plain(row)
            progress.done_bytes = min(size, round(size * number / max(num_rows, 1)))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "The Parquet file is damaged.",
            where=f"{name} after row {number}",
            why=str(error).splitlines()[0][:200],
            fix="Download or export it again.",
            code="DATA-PARQUET",
        ) from None


def _plain(row: dict[str, Any]) -> dict[str, Any] | RowProblem:
    """A row of plain values: Parquet fills absent fields of inner objects with null, which would look like given ones."""
    if too_deep(row):
        return depth_problem()
    plain: dict[str, Any] = {key: _without_nulls(value) for key, value in row.items()}
    for key, value in plain.items():
        if isinstance(value, str) and "\0" in value:
            return RowProblem("DATA-CTRL", f"`{key}` has a NUL character", key, "Remove it or drop the row.")
    return plain


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None or key in ("content", "role", "value", "from")}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, bytes):
        return "binary data" if len(value) > 64 else value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


# Text ----------------------------------------------------------------------------------------------------------------


def _paragraphs(path: Path, progress: Progress, notice: Notice) -> Iterator[Item]:
    """A text file: a row for each paragraph, since a blank line is the only mark that plain text has."""
    notice("DATA-PARAGRAPHS", "Plain text: every paragraph (up to a blank line) is a row.")
    number, line_number, lines, num_bytes = 0, 0, [], 0
    with path.open("rb", buffering=_BLOCK) as file:
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
                    raise _long(num_bytes)
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
