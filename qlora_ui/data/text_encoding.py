"""In which encoding a text was saved, told by its bytes."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from qlora_ui.base.errors import DataError
from qlora_ui.data.row_stream import BLOCK, Notice
from qlora_ui.data.sniff import looks_like_utf16

STRAY = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as `surrogateescape` keeps it."""
_LETTER = re.compile("[^\x00-\x7f\udc80-\udcff]")
_STRAY_RUN = re.compile("[\udc80-\udcff]{3,}")
_NOT_WESTERN = re.compile("[\udc81\udc8d\udc8f\udc90\udc9d]")
"""Bytes that Windows-1252 does not have."""
_MOST_IN_RUNS = 0.2
"""Share of the bytes beyond ASCII that may stand three and more together where the text is Western: accents stand alone."""
_MOST_UNKNOWN = 0.01


def encoding_of(path: Path, notice: Notice) -> str:
    """The encoding of a text file or a table: by its mark, UTF-8 where that is what most bytes are, else the usual one of old programs.

    Raises DataError for an encoding that is neither.
    """
    with path.open("rb") as file:
        head = file.read(4)
        if head.startswith(codecs.BOM_UTF8):
            return "utf-8-sig"
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            notice("DATA-ENCODING", "The file is UTF-16 and was read as such.")
            return "utf-16"
        file.seek(0)
        start = file.read(2000)
        if looks_like_utf16(start):
            notice("DATA-ENCODING", "The file is UTF-16 without a mark and was read as such.")
            return "utf-16-be" if not start[0] else "utf-16-le"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block := file.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return _not_quite_utf8(path, notice)
    return "utf-8"


def _not_quite_utf8(path: Path, notice: Notice) -> str:
    """The encoding of a table with bytes that are not UTF-8: a few of them do not make its other letters wrong."""
    num_letters = num_stray = num_in_runs = num_unknown = 0
    with path.open("r", encoding="utf-8", errors="surrogateescape", newline="") as file:
        while block := file.read(BLOCK):
            num_letters += len(_LETTER.findall(block))
            num_stray += len(STRAY.findall(block))
            num_in_runs += sum(map(len, _STRAY_RUN.findall(block)))
            num_unknown += len(_NOT_WESTERN.findall(block))
    if num_letters >= num_stray:
        return "utf-8"
    if num_in_runs > _MOST_IN_RUNS * num_stray or num_unknown > _MOST_UNKNOWN * num_stray:
        raise DataError(
            "The text is neither UTF-8 nor in a Western encoding.",
            where=path.name,
            why="Which one it is cannot be told, and a wrong one makes every letter wrong.",
            fix="Save it as UTF-8, or run “data convert --encoding NAME” on it, such as shift_jis, gb18030 or cp1251.",
            code="DATA-UTF8",
        )
    notice("DATA-ENCODING", "The file is not UTF-8; it was read as Windows-1252. Look at the accents in the preview.")
    return "cp1252"
