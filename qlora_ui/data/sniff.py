"""What kind of file it is, told by its first bytes: a name can say anything."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qlora_ui.base.errors import DataError
from qlora_ui.data.unpack import OFFICE, ZIP, office_refusal

HEAD_BYTES = 1 << 16

_REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed", "Add it on the Data tab, which unpacks it, or unpack it first."),
    (b"BZh", "bzip2-compressed", "Unpack it first and give the file inside."),
    (b"\xfd7zXZ\x00", "xz-compressed", "Unpack it first and give the file inside."),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "Unpack it first and give the file inside."),
    (b"\x04\x22\x4d\x18", "lz4-compressed", "Unpack it first and give the file inside."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first and give the file inside."),
    (b"Rar!", "a rar archive", "Unpack it first and give the file inside."),
    (b"PK\x03\x04", "a zip archive", "Add it on the Data tab, which unpacks one with a single data file, or unpack it first."),
    (b"PK\x05\x06", "an empty zip archive", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"\x89PNG", "a PNG image", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"\xff\xd8\xff", "a JPEG image", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"GIF8", "a GIF image", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"%PDF", "a PDF document", "Copy its text into a text file."),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Save the table as CSV."),
    (b"ARROW1", "an Arrow file", "Save it as Parquet or JSONL."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV."),
    (b"GGUF", "a model (GGUF), not a dataset", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"\x7fELF", "a program", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"MZ\x90", "a program", "Give a JSONL, JSON, CSV, TSV or Parquet file."),
    (b"\x93NUMPY", "a NumPy array", "Save the rows as JSONL."),
)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")
TEXTS = (".txt", ".md", ".text", ".log")
_JSON_ROWS = re.compile(rb'(\[\s*)?\{\s*"')
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def type_of_file(path: Path) -> str:
    """`jsonl`, `json`, `csv`, `tsv`, `parquet` or `text`.

    Raises DataError for what is refused by its bytes (archives, images, pickles, pages of a login) and for what is empty,
    missing or a folder.
    """
    name = path.name
    head = _head(path)
    if not head:
        raise DataError("The file is empty.", where=name, fix="Choose a file with rows.", code="DATA-EMPTY")
    if head.startswith(b"PAR1"):
        return "parquet"
    _refuse(head, name)
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        raise DataError(
            "This is no Parquet file, whatever its name says.",
            where=name,
            why="A Parquet file begins with the letters PAR1.",
            fix="Download or export it again.",
            code="DATA-PARQUET",
        )
    if suffix in (".csv", ".tsv", ".tab"):
        return "csv" if suffix == ".csv" else "tsv"
    if head.startswith(_UTF16) or looks_like_utf16(head):
        if suffix in TEXTS and _is_table(head):
            return "tsv"
        raise DataError(
            "The text looks like UTF-16.",
            where=name,
            why="Only tables are read in it; text and JSON are read in UTF-8.",
            fix="Save it as UTF-8, or run “data convert --encoding utf-16” on it.",
            code="DATA-UTF8",
        )
    return _text_type(head, suffix)


def _head(path: Path) -> bytes:
    try:
        if os.path.isdir(path):
            raise DataError(
                "This is a folder.",
                where=path.name,
                why="A folder can point to files elsewhere, so only single files are read.",
                fix="Choose the file with the rows.",
                code="DATA-TYPE",
            )
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(
                "This is a pipe or a device.",
                where=path.name,
                why="A file is read more than once, and a pipe gives its rows only once.",
                fix="Write the rows to a file and give that.",
                code="DATA-TYPE",
            )
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(
            "The file cannot be opened.",
            where=path.name[:200],
            why=error.strerror or str(error),
            fix="Check the path and your rights on it.",
            code="DATA-MISSING" if isinstance(error, FileNotFoundError) else "DATA-ACCESS",
        ) from None
    except ValueError:
        raise DataError("The path holds a NUL.", where="path", fix="Choose the file again.", code="DATA-MISSING") from None


def refuse_foreign(path: Path) -> None:
    """Raise DataError for what is no file of rows by its first bytes: archives, Office files, images, pickles, pages of a login."""
    _refuse(_head(path), path.name)


def _refuse(head: bytes, name: str) -> None:
    if head.startswith(ZIP) and OFFICE in head[:256]:
        raise office_refusal(name)
    if head[257:262] == b"ustar":
        raise DataError("This is a tar archive, not rows.", where=name, fix="Unpack it first and give the file inside.", code="DATA-TYPE")
    for magic, what, fix in _REFUSED:
        if head.startswith(magic):
            raise DataError(f"This is {what}, not rows.", where=name, fix=fix, code="DATA-TYPE")
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in range(1, 6):
        raise DataError(
            "This is a Python pickle.",
            where=name,
            why="Opening a pickle can run any program, so it is refused.",
            fix="Save the rows as JSONL in the program that made it.",
            code="DATA-TYPE",
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith(_HTML):
        raise DataError(
            "This is a web page (HTML), perhaps of a login, not the dataset.",
            where=name,
            fix="Download the file itself, signed in if need be.",
            code="DATA-TYPE",
        )


def _is_table(head: bytes) -> bool:
    """Whether UTF-16 text has a tab in its first line and the next, as what Excel calls “Unicode Text”."""
    encoding = "utf-16" if head.startswith(_UTF16) else "utf-16-le" if head[:1] != b"\0" else "utf-16-be"
    return all("\t" in line for line in head.decode(encoding, "ignore").split("\n", 2)[:2])


def looks_like_utf16(head: bytes) -> bool:
    """Whether every other byte is zero, as in Western text of UTF-16 without a mark."""
    sample = head[:2000]
    zeros = sample.count(0)
    return len(sample) > 8 and zeros > 0.3 * len(sample) and (not any(sample[0::2]) or not any(sample[1::2]))


def _text_type(head: bytes, suffix: str) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n\0")
    if suffix in TEXTS:
        return "jsonl" if start[:2] in (b'{"', b"{'") else "json" if _JSON_ROWS.match(start) else "text"
    if suffix in (".jsonl", ".ndjson"):
        return "json" if _is_spread(start) else "jsonl"
    if start[:1] == b"[":
        return "json"
    if start[:1] == b"{":
        return "jsonl" if _has_row_per_line(start) or not suffix else "json"
    if suffix == ".json":
        return "json"
    if b"\t" in head.split(b"\n", 1)[0]:
        return "tsv"
    first = head.split(b"\n", 1)[0]
    return "csv" if b"," in first or b";" in first else "jsonl" if not start else "text"


def _has_row_per_line(start: bytes) -> bool:
    """Whether the first two lines are objects of their own."""
    lines = [line for line in start.split(b"\n", 50) if line.strip()]
    return len(lines) > 1 and lines[0].rstrip().endswith(b"}") and lines[1].startswith(b"{")


def _is_spread(start: bytes) -> bool:
    """Whether a JSON value is spread over lines (`[` or `{` alone on the first one), so that lines are not rows."""
    first, _, rest = start.partition(b"\n")
    first = first.rstrip()
    if first.endswith(b"]") and rest.lstrip().startswith(b"["):
        return False  # A conversation a line, each a bare list of turns.
    return first in (b"[", b"{", b"[{") or (first[:1] == b"[" and first[1:2] in (b"{", b"", b"["))
