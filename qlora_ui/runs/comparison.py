"""Answers of a run's base and adapters to the same questions: kept with the run, voted on, taken away as a file."""

from __future__ import annotations

import csv
import io
import json
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import read_json, write_text
from qlora_ui.runs.run_dir import RunDir

EQUAL = "="
"""The vote of somebody who prefers none."""
Form = Literal["csv", "jsonl", "md"]
_FORMULA = tuple("=+-@\t\r")


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of a text and what a model thought of it."""

    text: str
    logprob: float | None = None
    """Natural logarithm of its probability; None where nothing comes before it."""
    rank: int | None = None
    """1 where the model would have chosen it."""
    instead: str = ""
    """The likeliest token."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; everything but the text may be empty."""

    text: str
    system: str = ""
    reference: str = ""
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """A question with every side's answer."""

    question: Question
    answers: Mapping[str, str]
    scores: Mapping[str, Sequence[TokenScore]] = field(default_factory=dict)
    """Of each answer under the side that gave it."""
    order: Sequence[str] = ()
    """The sides as a blind comparison shows them."""
    vote: str = ""
    """A side, EQUAL, or empty before somebody votes."""
    problem: str = ""
    """Why it was not answered."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was asked of whom, and what they said."""

    names: Mapping[str, str]
    """What each side is called."""
    rows: Sequence[Compared] = ()
    is_blind: bool = False
    """Names are hidden until somebody has voted on all rows, or asks for them."""
    asked: str = ""
    """How answers were chosen, in words."""
    time: float = 0.0
    num_asked: int = 0
    """Questions in all; there are fewer rows where it was cancelled, or the app ended."""
    warning: str = ""
    """Where the base is not the one that an adapter was trained on."""

    @property
    def hides_names(self) -> bool:
        """Whether a page may not say who gave which answer."""
        return self.is_blind and (not self.rows or any(not row.vote and not row.problem for row in self.rows))

    def tally(self) -> dict[str, int]:
        """Votes of each side, and of EQUAL."""
        return {side: sum(row.vote == side for row in self.rows) for side in (*self.names, EQUAL)}


class Comparisons:
    """The newest comparison of each run, in its folder; rows and votes may come from different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def read(self, run: RunDir) -> Comparison | None:
        """What was compared last; None where nothing was."""
        value = read_json(run.comparison_path)
        try:
            return _from_dict(value) if isinstance(value, dict) else None
        except (KeyError, TypeError, AttributeError):
            return None

    def begin(self, run: RunDir, comparison: Comparison) -> None:
        """Put an empty comparison in the place of the one before."""
        with self._lock:
            self._write(run, comparison)

    def add(self, run: RunDir, row: Compared) -> None:
        """Keep a question's answers, in an order of their own."""
        order = random.sample(list(row.answers), len(row.answers))
        self._change(run, lambda known: replace(known, rows=[*known.rows, replace(row, order=order)]))

    def vote(self, run: RunDir, index: int, side: str) -> None:
        """Prefer a side's answer to a question (or EQUAL); the newest vote counts."""

        def change(known: Comparison) -> Comparison:
            if not 0 <= index < len(known.rows) or side not in (*known.rows[index].answers, EQUAL):
                raise QloraUiError("That answer is not there any more.", fix="Look at the page again.", code="stale-page")
            rows = list(known.rows)
            rows[index] = replace(rows[index], vote=side)
            return replace(known, rows=rows)

        self._change(run, change)

    def show_names(self, run: RunDir) -> None:
        """Say who gave which answer from now on."""
        self._change(run, lambda known: replace(known, is_blind=False))

    def _change(self, run: RunDir, change: Any) -> None:
        with self._lock:
            known = self.read(run)
            if known is None:
                raise QloraUiError("There is no comparison any more.", fix="Compare again.", code="stale-page")
            self._write(run, change(known))

    def _write(self, run: RunDir, comparison: Comparison) -> None:
        if not run.path.is_dir():
            raise QloraUiError("The run was deleted meanwhile.", fix="Choose another run.", code="run-missing")
        # Rows may hold a hundred thousand tokens, and each vote writes all of them.
        write_text(run.comparison_path, orjson.dumps(comparison).decode())


def as_text(comparison: Comparison, form: Form) -> str:
    """The comparison as a file's text, its votes beside the answers."""
    sides = list(comparison.names)
    head = ["question", *(comparison.names[side] for side in sides), "reference", "preferred"]
    if form == "jsonl":
        return "".join(
            json.dumps(
                {
                    "question": row.question.text,
                    "system": row.question.system,
                    "answers": {comparison.names[side]: row.answers.get(side, "") for side in sides},
                    "reference": row.question.reference,
                    "preferred": _preferred(comparison, row),
                },
                ensure_ascii=False,
            )
            + "\n"
            for row in comparison.rows
        )
    table = [
        [row.question.text, *(row.answers.get(side, "") for side in sides), row.question.reference, _preferred(comparison, row)]
        for row in comparison.rows
    ]
    if form == "csv":
        out = io.StringIO(newline="")
        # A cell that begins like a formula would be run by a spreadsheet.
        csv.writer(out).writerows([[f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in line] for line in [head, *table]])
        return out.getvalue()
    lines = [
        "| " + " | ".join(cells) + " |" for cells in [list(map(_cell, head)), ["---"] * len(head), *[map(_cell, line) for line in table]]
    ]
    return "\n".join(lines) + "\n"


def _preferred(comparison: Comparison, row: Compared) -> str:
    return "equal" if row.vote == EQUAL else comparison.names.get(row.vote, "")


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "<br>")


def _from_dict(value: Mapping[str, Any]) -> Comparison:
    rows = [
        Compared(
            Question(**{**row["question"], "tools": tuple(row["question"].get("tools", ()))}),
            dict(row["answers"]),
            {side: [TokenScore(**score) for score in scores] for side, scores in row["scores"].items()},
            list(row["order"]),
            str(row["vote"]),
            str(row.get("problem", "")),
        )
        for row in value["rows"]
    ]
    known = (dict(value["names"]), rows, bool(value["is_blind"]), str(value["asked"]), float(value["time"]))
    return Comparison(*known, num_asked=int(value.get("num_asked", 0)), warning=str(value.get("warning", "")))
