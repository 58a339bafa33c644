"""Rows that somebody copied out of a chat, with what the chat said around them."""

from __future__ import annotations

import re

from qlora_ui.catalog.formats.transcript import begins_question

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_FIRST = re.compile(r'^[ \t]*(?:\[\s*)?\{\s*"', re.MULTILINE)
_LAST = re.compile(r"^.*[\]}],?[ \t]*$", re.MULTILINE)
_ROWS = ("[", "{")


def rows_in_reply(text: str) -> str:
    """The JSON rows in a chat's reply, with nothing but line ends where code fences and words stood, so that lines keep their numbers;
    `text` itself where rows are not most of it.
    """
    if text.lstrip().startswith(_ROWS):
        return text  # What follows the rows of a file, its reader says.
    fenced = [match.span(1) for match in _FENCED.finditer(text) if match[1].lstrip().startswith(_ROWS)]
    spans = fenced or _between_words(text)
    if sum(end - start for start, end in spans) < len(text) / 2:
        return text
    rows, at = "", 0
    for start, end in spans:
        rows += "\n" * text.count("\n", at, start) + text[start:end]
        at = end
    return rows


def suffix_of(rows: str) -> str:
    """The suffix of a file with these rows, by their first sign or word."""
    start = rows.lstrip()
    return ".json" if start[:1] == "[" else ".jsonl" if start[:1] == "{" else ".txt" if begins_question(start) else ".csv"


def _between_words(text: str) -> list[tuple[int, int]]:
    """From the first line that begins rows to the last that ends them."""
    first = _FIRST.search(text)
    last = next(reversed(list(_LAST.finditer(text))), None)
    return [(first.start(), last.end())] if first and last and last.end() > first.start() else []
