"""Standard rows as the reader of a file leaves them for `data.load.RowFile`: lines of JSON, and where each stands."""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from typing import Any

import orjson

from qlora_ui.base.units import MIB

NUMBERS = ("offsets", "numbers")
"""Of each row, eight bytes in a file `NAME.bin`."""


def has_all_rows(folder: Path, num_rows: int) -> bool:
    """Whether the files are as long as so many rows make them: a power cut leaves empty ones, or ones that end in zeros."""
    try:
        if any((folder / f"{name}.bin").stat().st_size != 8 * num_rows for name in NUMBERS):
            return False
        with (folder / "rows.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            return file.read(1) == (b"\n" if num_rows else b"")
    except OSError:
        return False


class RowWriter:
    """The rows of a folder as they are written: lines of JSON, where each begins, and its number in the file that was read."""

    def __init__(self, folder: Path) -> None:
        self.numbers = array("q")
        self._folder = folder
        self._offsets = array("q")
        self._position = 0

    def __enter__(self) -> RowWriter:
        self._file = (self._folder / "rows.jsonl").open("wb", buffering=MIB)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._file.close()
        if kind is not None:
            return
        for name, values in zip(NUMBERS, (self._offsets, self.numbers), strict=True):
            (self._folder / f"{name}.bin").write_bytes(values.tobytes())

    def add(self, number: int, row: dict[str, Any]) -> bytes:
        """Write a row; its line is returned without the end."""
        try:
            line = orjson.dumps(row)
        except (TypeError, ValueError):  # Integers beyond 64 bits inside tool arguments; rare, so slow is fine.
            line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
        self._file.write(line)
        self._file.write(b"\n")
        self._offsets.append(self._position)
        self.numbers.append(number)
        self._position += len(line) + 1
        return line
