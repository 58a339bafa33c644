"""Rows of JSON lines and of JSON files."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import MIB
from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.data.json_errors import MAX_DEPTH, careful_loads, depth_problem, explain, note_nan, too_deep
from qlora_ui.data.json_shapes import rows_in_object
from qlora_ui.data.row_stream import BLOCK, MAX_ROW_BYTES, Item, Notice, Progress, as_row, too_long

_ONE_OBJECT_BYTES = 64 * MIB
_LONGEST_WORD = 16
"""Nothing but a text is longer where the end of the buffer may cut it: -Infinity, \\u1234, the exponent of a number."""

_MOST_SEARCHED = 30
"""Columns up to which searching a line for each name is quicker than reading it twice; at 500 it took 170 times as long."""


def read_jsonl(path: Path, progress: Progress, notice: Notice) -> Iterator[Item]:
    """One object a line; numbers are those of the lines."""
    needles: dict[tuple[str, ...], list[bytes]] = {}
    with path.open("rb", buffering=BLOCK) as file:
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
                yield number, too_long(length)
            elif not raw.isspace():
                if raw.rstrip().endswith(b"},"):
                    raw = raw.rstrip()[:-1]
                    notice("DATA-COMMA", "Lines end with a comma, which JSON lines do not have; it was skipped.")
                yield number, _line(raw, needles, notice)


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while rest := file.readline(BLOCK):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _line(raw: bytes, needles: dict[tuple[str, ...], list[bytes]], notice: Notice) -> dict[str, Any] | RowProblem:
    try:
        if b"\0" in raw or b"\\u0000" in raw:
            place = f" at column {raw.index(0) + 1}" if b"\0" in raw else ""
            return RowProblem("DATA-CTRL", f"has a NUL character{place}", fix="Remove it or drop the row.")
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = careful_loads(raw.rstrip(b"\r\n"), notice)
        if type(value) is not dict:
            return as_row(value)
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and too_deep(value):
            return depth_problem()
        if len(value) > _MOST_SEARCHED:
            careful_loads(raw, notice)
            return value
        shape = tuple(value)
        searched = needles.get(shape)
        if searched is None:
            searched = [orjson.dumps(key) for key in shape]
            if len(needles) < 1000:
                needles[shape] = searched
        for needle in searched:
            if raw.count(needle) > 1:
                careful_loads(raw, notice)  # Raises for a key that is there twice; the parser above silently takes the last.
                break
    except RowProblem as problem:
        return problem
    return value


def read_json_file(path: Path, progress: Progress, notice: Notice) -> Iterator[Item]:
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
            if single is not None:
                yield 1, _row(single)
            yield number, RowProblem(problem.code, problem.what, problem.column, problem.fix, is_last=True)
            return
        if number == 1 and not is_list:
            single = value
        else:
            if single is not None:
                yield 1, _row(single)
                single = None
            yield number, _row(value)
        if is_list and values.peek() == "{":
            notice("DATA-COMMA", "Commas are missing between rows; the rows were read as they are.")
        elif is_list and values.peek() not in ("]", ","):
            what = f"line {values.line}: the list is not finished"
            yield number + 1, RowProblem("DATA-JSON", what, fix="Export the file again.", is_last=True)
            return
        values.skip(",")
    if is_list:
        values.skip("]")
        if values.peek():
            what = f"line {values.line}: more text after the end of the list"
            yield number + 1, RowProblem("DATA-JSON", what, fix="Write one list, or one object a line.", is_last=True)
    if single is None:
        return
    rows = rows_in_object(single, notice)
    if rows is None:
        notice("DATA-ONE-OBJECT", "The file is one object, taken as one row.")
        yield 1, _row(single)
        return
    for position, value in enumerate(rows, 1):
        yield position, _row(value)


def _row(value: Any) -> dict[str, Any] | RowProblem:
    return depth_problem() if too_deep(value) else as_row(value)


class _Values:
    """JSON values of a file, one at a time, out of a buffer that grows only as far as one value needs."""

    def __init__(self, path: Path, progress: Progress, notice: Notice) -> None:
        self._file = path.open("rb", buffering=BLOCK)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._progress = progress
        self._text = ""
        self._at = 0
        self._is_done = False
        self._lines_before = 0
        """Line ends before the text that is held."""
        self._json = json.JSONDecoder(parse_constant=lambda name: note_nan(notice))
        self._fill()
        if self._text.startswith("\ufeff"):
            self._at = 1
            notice("DATA-BOM", "The file begins with a byte order mark, which was skipped.")

    def _fill(self, num_bytes: int = 0) -> None:
        raw = self._file.read(max(BLOCK, num_bytes))
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
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + more
        self._at = 0
        if self._is_done:
            self._file.close()

    @property
    def line(self) -> int:
        """The line of the next character, from 1."""
        return self._lines_before + self._text.count("\n", 0, self._at) + 1

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
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError:
                raise depth_problem() from None
            except json.JSONDecodeError as error:
                if not self._is_done and self._may_be_cut(error) and self._may_grow():
                    self._fill(len(self._text) - self._at)
                    continue
                raise self._problem(error) from None
            except ValueError:
                raise RowProblem("DATA-JSON", "holds a number with too many digits", fix="Write it as text.") from None
            if end == len(self._text) and not self._is_done and not isinstance(value, dict | list | str):
                self._fill()  # A number may go on in the next block.
                continue
            break
        self._at = end
        return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether an error may come from the end of what was read so far, and not from the file."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_WORD

    def _may_grow(self) -> bool:
        if len(self._text) - self._at > _ONE_OBJECT_BYTES:
            raise too_long(len(self._text) - self._at)
        return True

    def _problem(self, error: json.JSONDecodeError) -> RowProblem:
        start = self._text.rfind("\n", 0, error.pos) + 1
        end = self._text.find("\n", error.pos)
        line = self._lines_before + self._text.count("\n", 0, error.pos) + 1
        what, position = explain(self._text[start : end if end >= 0 else len(self._text)], error.msg, error.pos - start)
        return RowProblem("DATA-JSON", f"line {line}, column {position + 1}: {what}", fix="Correct the file there.")
