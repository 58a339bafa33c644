"""Rows of Parquet files, a few at a time, with an eye on what they unpack to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import GIB, KIB, MIB, format_bytes
from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.data.json_errors import depth_problem, too_deep
from qlora_ui.data.row_stream import MAX_COLUMNS, Item, Progress

_BATCH_ROWS = 32
_BATCH_BYTES = 128 * MIB
_DECODED_RATIO = 100
_DECODED_FREE = 64 * MIB
_DECODED_MOST = 4 * GIB
"""Unpacked bytes of a file that packs better than the ratio; they pass through memory a few rows at a time."""
_LONG_ROW_BYTES = 256 * KIB
"""A prompt that all rows share packs better than the ratio too, and is never so long."""


def read_parquet(path: Path, progress: Progress) -> Iterator[Item]:
    """Rows of a Parquet file; raises DataError where it is damaged, too wide, or unpacks to far more than it is."""
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
    columns = file.schema_arrow.names
    double = next((column for position, column in enumerate(columns) if column in columns[:position]), None)
    if double is not None:
        # A row could hold the last one only.
        raise DataError(f"The column “{double}” is there twice.", where=name, fix="Rename or delete one of them.", code="DATA-PARQUET")
    number, decoded, batch_number = 0, 0, 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            batch_number += 1
            decoded += batch.nbytes
            progress.unpacked_bytes = decoded
            if batch.nbytes > _BATCH_BYTES or (decoded > _DECODED_RATIO * size and _is_much(decoded, number + batch.num_rows)):
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


def _is_much(decoded: int, num_rows: int) -> bool:
    return decoded > _DECODED_MOST or decoded > max(_DECODED_FREE, _LONG_ROW_BYTES * num_rows)


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
        return _text_of(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _text_of(value: bytes) -> str | dict[str, str]:
    """The text of a cell whose writer did not say that it is text (Spark, Impala, Go), however long; what is no text stays none."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        # An object is learned from by no format, and a column of pictures is told by its being filled.
        return {"bytes": "binary data"}
