"""Which format a file has: why this one, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.catalog.formats import FORMATS, format_named
from qlora_ui.catalog.formats.columns import guess_mapping, standard_mapping
from qlora_ui.catalog.formats.format import DataFormat, Row, names
from qlora_ui.catalog.formats.preference import is_rated
from qlora_ui.data.report import FormatVote
from qlora_ui.data.table_rows import reads_as_text

SAMPLE_ROWS = 1000
MAP_COLUMNS = "Map the columns"
"""How the fix begins where only a word on the columns is missing."""

_MEDIA = ("image", "images", "pixel_values", "audio", "video", "videos", "audios")


@dataclass(frozen=True, slots=True)
class Detection:
    """A chosen format with its reasons."""

    format: DataFormat
    why: str
    votes: tuple[FormatVote, ...]
    mapping: Mapping[str, str]


def detect(rows: Sequence[Row], wanted: str, mapping: Mapping[str, str], name: str) -> Detection:
    """The format of some rows of the file `name`; `wanted` is a format's name or `auto`.

    Raises DataError where no format fits, where the columns are of a kind that is refused, and for preference pairs that
    were not asked for.
    """
    _refuse_columns(rows, name)
    mapping = standard_mapping(mapping)
    if wanted != "auto":
        asked = format_named(wanted)
        votes = _votes(rows, mapping)
        chosen = next(vote for vote in votes if vote.name == wanted)
        if not chosen.fits:
            raise DataError(
                f"The rows are not of the format “{asked.label}”: {chosen.reason}.",
                where=name,
                why=f"Columns found: {names(rows[0])}.",
                fix="Choose “Detect”, another format, or map the columns.",
                code="DATA-COLS",
            )
        why = "The columns are what you said they are." if wanted == "columns" else "You chose it."
        return Detection(asked, why, votes, _mapping_for(asked, rows, mapping))
    votes = _votes(rows, mapping)
    # Of any row: the first may lack a column that was empty in it.
    if mapping and any(vote.fits for vote in votes if vote.name == "columns"):
        return Detection(format_named("columns"), "The columns are what you said they are.", votes, mapping)
    form = _best(votes)
    if form is None:
        raise _nothing_fits(rows, votes, name)
    if form.name == "preference":
        rated = is_rated(rows[0])
        raise DataError(
            "These are answers rated good or bad (`label`)." if rated else "These are preference pairs: a chosen and a rejected answer.",
            where=name,
            why=f"This kind of training learns every answer that it is given and has no use for a {'bad' if rated else 'rejected'} one.",
            fix=f"Set the format to “Preference pairs, chosen answer only” to learn the {'good' if rated else 'chosen'} answers.",
            code="DATA-PREFERENCE",
        )
    return Detection(form, _why(form, rows, votes), votes, _mapping_for(form, rows, mapping))


def _votes(rows: Sequence[Row], mapping: Mapping[str, str]) -> tuple[FormatVote, ...]:
    votes = []
    for form in FORMATS:
        reasons = [form.mismatch(row, mapping) for row in rows[:SAMPLE_ROWS]]
        votes.append(FormatVote(form.name, reasons.count(""), next((reason for reason in reasons if reason), "")))
    return tuple(votes)


def _best(votes: Sequence[FormatVote]) -> DataFormat | None:
    """The format that fits most rows; of equals the more special one, which stands first in the catalogue."""
    best = max(votes, key=lambda vote: vote.fits)
    return format_named(best.name) if best.fits else None


def _mapping_for(form: DataFormat, rows: Sequence[Row], mapping: Mapping[str, str]) -> Mapping[str, str]:
    return (mapping or guess_mapping(_columns_of(rows))) if form.name == "columns" else {}


def _columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns of all the rows, in the order in which they come up."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _why(form: DataFormat, rows: Sequence[Row], votes: Sequence[FormatVote]) -> str:
    chosen = next(vote for vote in votes if vote.name == form.name)
    are_all, is_one = chosen.fits == len(rows), chosen.fits == 1
    share = "every row looked at" if are_all else f"{chosen.fits} of the first {len(rows)} rows"
    has, is_ = ("has", "is") if are_all or is_one else ("have", "are")
    if form.name == "columns":
        guess = guess_mapping(_columns_of(rows))
        pairs = ", ".join(f"`{column}` as the {_ROLE_WORDS[role]}" for role, column in guess.items())
        return f"{share[:1].upper()}{share[1:]} {has} columns with usual names: {pairs}."
    return f"{share[:1].upper()}{share[1:]} {is_} of this format: {form.about[:1].lower()}{form.about[1:]}"


_ROLE_WORDS = {"user": "question", "assistant": "answer", "system": "system prompt", "thinking": "thinking before the answer"}


def media_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold pictures or sound where there is something in them."""
    return tuple(column for column in columns if column in _MEDIA)


def is_filled(value: Any) -> bool:
    """Whether there is something in a cell; a list of empty things is empty too."""
    if isinstance(value, list | dict):
        return any(map(is_filled, value.values() if isinstance(value, dict) else value))
    return value is not None and value != ""


def _refuse_columns(rows: Sequence[Row], name: str) -> None:
    row = rows[0]
    # Programs that know pictures write the column into datasets of text too, and leave it empty.
    media = next((column for column in media_columns(row) if any(is_filled(row.get(column)) for row in rows)), "")
    if media:
        raise DataError(
            f"The column “{media}” holds pictures or sound.",
            where=name,
            why="Only text is learned from.",
            fix="Use a text dataset, or remove the column if the text makes sense without it.",
            code="DATA-COLS",
        )
    if "input_ids" in row:
        raise DataError(
            "The rows are token numbers already (`input_ids`).",
            where=name,
            why="Numbers of another tokenizer mean other words in this one, and some would not exist.",
            fix="Use the dataset as text.",
            code="DATA-COLS",
        )


def _nothing_fits(rows: Sequence[Row], votes: Sequence[FormatVote], name: str) -> DataError:
    columns = _columns_of(rows[:50])
    if not columns:
        return DataError("The rows are empty objects.", where=name, fix="Choose another file.", code="DATA-COLS")
    single = next((vote.reason for vote in votes if "belong together" in vote.reason), "")
    if not single and Path(name).suffix.lower() in (".csv", ".tsv") and any(map(reads_as_text, columns)):
        single = "the first line of a table names its columns, and this one looks like a row"
    return DataError(
        f"None of the known formats fits the columns found: {names(columns)}.",
        where=name,
        why=f"{single[:1].upper()}{single[1:]}."
        if single
        else "Known: messages, conversations, instruction and output, prompt and completion, question and answer, text.",
        fix=f"{MAP_COLUMNS}: say which is the question and which the answer.",
        code="DATA-COLS",
    )
