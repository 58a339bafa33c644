"""The child process that reads a foreign file: format, standard rows, findings in text. It writes into one folder only.

Started by `data.parse` with a job as JSON on its input; it answers with lines of JSON: progress, then a report or an error.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from qlora_ui.base.errors import DataError, Problem
from qlora_ui.base.units import MIB
from qlora_ui.catalog.formats import FORMATS
from qlora_ui.catalog.formats.columns import guess_mapping
from qlora_ui.catalog.formats.format import ROLES, DataFormat, RowProblem
from qlora_ui.catalog.formats.preference import REJECTED
from qlora_ui.catalog.formats.transcript import style_of
from qlora_ui.data.checks import TextChecks
from qlora_ui.data.detect import SAMPLE_ROWS, Detection, detect, is_filled, media_columns
from qlora_ui.data.limits import confine
from qlora_ui.data.readers import read_rows
from qlora_ui.data.report import SHOWN_ROWS, UNREAD, UNREAD_FIX, Finding, SourceReport, in_order
from qlora_ui.data.reshape import Reshape
from qlora_ui.data.row_stream import Item, Progress
from qlora_ui.data.row_writer import RowWriter
from qlora_ui.data.sniff import type_of_file
from qlora_ui.data.threads import joined
from qlora_ui.data.unpack import unpack

_IGNORED = ("chat_template_kwargs", "chat_template")
_SAMPLE_BYTES = 32 * MIB
_MOST_SHAPES = 1000
"""Sets of columns that are known; each row of a file may have its own."""
_STANDARD = {"messages", "text"}
"""What every row becomes; a new version of texts, some of which were conversations, has both."""


def main() -> None:
    """Do the job on standard input."""
    job = json.loads(sys.stdin.readline())
    confine(job["cpu_s"])
    try:
        if job.get("peek"):
            _say({"report": peek(job)})
            return
        if job.get("most_bytes"):
            _say({"report": unpack(job)})
            return
        report = parse(job)
    except DataError as error:
        _say({"error": {"code": error.code, "problems": [asdict(problem) for problem in error.problems]}})
    except MemoryError:
        problem = Problem(Path(job["path"]).name, "Reading the file needs more than the memory it may have.", "", "Split it.", "DATA-LIMIT")
        _say({"error": {"code": "DATA-LIMIT", "problems": [asdict(problem)]}})
    else:
        _say({"report": asdict(report)})


def parse(job: dict[str, Any]) -> SourceReport:
    """Read the file of a job into its folder; raises DataError and nothing else, whatever the file holds."""
    return _Parse(job).run()


def peek(job: dict[str, Any]) -> dict[str, Any]:
    """The first rows of a file as it has them, long texts shortened, for a table in which the user maps columns."""
    path = Path(job["path"])
    file_type = type_of_file(path)
    rows: list[dict[str, Any]] = []
    for _, item in itertools.islice(read_rows(path, file_type, Progress(), lambda code, what: None), 50 * job["peek"]):
        if isinstance(item, dict) and len(rows) < job["peek"]:
            rows.append({str(column)[:200]: _shown(value) for column, value in list(item.items())[:100]})
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return {"columns": columns, "rows": rows, "guess": guess_mapping(columns)}


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


class _Parse:
    """One file on its way to standard rows."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.path = Path(job["path"])
        self.name: str = job["name"]
        self.job = job
        self.folder = Path(job["folder"])
        self.progress = Progress()
        self.size = self.path.stat().st_size if self.path.is_file() else 0
        self.notices: dict[str, str] = {}
        self.problems: dict[str, tuple[array[int], RowProblem]] = {}
        """By code: the rows, and the first problem."""
        self.last: tuple[int, RowProblem] | None = None
        """The row after which nothing could be read."""
        self.formats: Counter[str] = Counter()
        self.shapes: dict[tuple[str, ...], tuple[DataFormat, tuple[str, ...], Mapping[str, str]]] = {}
        """By a row's columns: its format, the columns that may hold pictures or sound, and what columns mean."""
        self.plain = array("q")
        """Rows that are plain text."""
        self.first_of: dict[str, int] = {}
        self.num_seen = 0
        self.is_at_end = False
        """Whether every row was seen: of a file without a readable row among the first ones the rest is not."""
        self.last_progress = 0.0

    def run(self) -> SourceReport:
        """Read everything; raises DataError where no row can be used."""
        file_type = type_of_file(self.path)
        rows = self._rows(file_type)
        head, sample = self._sample(rows)
        if not sample:
            for number, item in head:
                self._note(number, item)
            raise self._nothing(file_type)
        detection = detect(sample, self.job["format"], self.job["mapping"], self.name)
        checks = TextChecks()
        num_rows = self._convert(itertools.chain(head, rows), detection, checks)
        if not num_rows:
            raise self._nothing(file_type)
        return SourceReport(
            source=self.job["source"],
            name=self.name,
            file_type=file_type,
            format=detection.format.name,
            why=detection.why,
            votes=detection.votes,
            num_rows=num_rows,
            num_seen=self.num_seen,
            content_hash=self.job["content_hash"],
            folder=str(self.folder),
            columns=tuple(str(column)[:200] for column in sample[0]),
            mapping=detection.mapping,
            roles=self._changed_roles(detection, sample),
            scripts=checks.scripts(),
            languages=checks.languages(),
            num_bytes=self.size,
            findings=in_order(
                self._fixable(
                    [*self._row_findings(num_rows), *self._notes(detection, sample, num_rows), *checks.findings(self.folder, self.name)]
                )
            ),
            unread=self._unread(),
        )

    def _rows(self, file_type: str) -> Iterator[Item]:
        """The rows as they were meant, whatever a table or another program made of them."""
        notice = self.notices.__setitem__
        # Columns that the user mapped are found by the names that the user saw.
        reshape = Reshape(notice, keeps_names=bool(self.job["mapping"]))
        return reshape.all(joined(read_rows(self.path, file_type, self.progress, notice), notice))

    def _sample(self, rows: Iterator[Item]) -> tuple[list[Item], list[dict[str, Any]]]:
        """The first rows, kept for the real pass, and the readable ones among them."""
        head: list[Item] = []
        sample: list[dict[str, Any]] = []
        # A first row that is too long itself must not keep the others from being looked at.
        while len(head) < SAMPLE_ROWS and (not sample or max(self.progress.done_bytes, self.progress.unpacked_bytes) < _SAMPLE_BYTES):
            item = next(rows, None)
            if item is None:
                self.is_at_end = True
                break
            head.append(item)
            if isinstance(item[1], dict):
                sample.append(item[1])
        return head, sample

    def _convert(self, rows: Iterator[Item], detection: Detection, checks: TextChecks) -> int:
        """Write every row that can be used in its standard form; how many there were."""
        num_pending = 0
        with RowWriter(self.folder) as file:
            for number, item in rows:
                num_pending += 1
                if num_pending == 2000:
                    num_pending = 0
                    self._tell()
                if isinstance(item, RowProblem):
                    self._note(number, item)
                    continue
                self.num_seen += 1
                try:
                    normal = self._standard(number, item, detection)
                except RowProblem as problem:
                    self._note_row(problem.code, number, problem)
                    continue
                line = file.add(number, normal)
                if "text" in normal:
                    self.plain.append(number)
                checks.add(number, normal, line)
        self.is_at_end = True
        checks.finish()
        return len(file.numbers)

    def _standard(self, number: int, item: dict[str, Any], detection: Detection) -> dict[str, Any]:
        """The standard form of a row; raises RowProblem where it has none."""
        chosen = detection.format
        form, media, mapping = self._shape_of(item, detection)
        self.formats[form.name] += 1
        if form is not chosen and not {form.name, chosen.name} <= _STANDARD:
            self.first_of.setdefault(form.name, number)
            raise RowProblem("DATA-SHAPE", f"is {form.label} and not {chosen.label}")
        if filled := next((column for column in media if is_filled(item[column])), ""):
            what = f"holds pictures or sound in `{filled}`; only text is learned from"
            raise RowProblem("DATA-MEDIA", what, filled, "Empty the cell if the text makes sense without it")
        if form.name == "columns" and isinstance(answers := item.get(mapping.get("assistant", "")), list) and len(answers) > 1:
            self.notices.setdefault("DATA-LISTED", f"Row {number} has a list as its answer: of such the first entry is learned.")
        return form.convert(item, mapping if form is chosen else {})

    def _shape_of(self, item: dict[str, Any], detection: Detection) -> tuple[DataFormat, tuple[str, ...], Mapping[str, str]]:
        """What the names of a row's columns say of it, as `shapes` has it."""
        shape = tuple(item)
        known = self.shapes.get(shape)
        if known is None:
            # A row is guessed by its own columns: the first one may lack the context or the system prompt that others have.
            is_guessed = detection.format.name == "columns" and not self.job["mapping"]
            meant = guess_mapping(shape) if is_guessed else detection.mapping
            known = self._format_of(item, detection.format, detection.mapping), media_columns(shape), meant
            if len(self.shapes) < _MOST_SHAPES:
                self.shapes[shape] = known
        return known

    def _format_of(self, row: dict[str, Any], chosen: DataFormat, mapping: Any) -> DataFormat:
        """The chosen format where it fits or nothing does; else the one that the row really is."""
        if not chosen.mismatch(row, mapping) or self.job["format"] != "auto":
            return chosen
        return next((form for form in FORMATS if not form.mismatch(row, {})), chosen)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.last_progress > 0.2:
            self.last_progress = now
            _say({"progress": min(self.progress.done_bytes / max(self.size, 1), 0.99), "rows": self.num_seen})

    def _note(self, number: int, item: Any) -> None:
        if isinstance(item, RowProblem):
            self.num_seen += 1
            if item.is_last:
                self.last = (number, item)
            else:
                self._note_row(item.code, number, item)

    def _note_row(self, code: str, number: int, problem: RowProblem) -> None:
        if code not in self.problems:
            self.problems[code] = (array("q"), problem)
        self.problems[code][0].append(number)

    def _place(self, number: int) -> str:
        return f"{'line' if self.path.suffix.lower() in ('.jsonl', '.ndjson') else 'row'} {number}"

    def _row_findings(self, num_rows: int) -> list[Finding]:
        """A finding for every kind of row that could not be used."""
        findings = []
        # A new version of the data holds conversations: leaving out one kind of such rows leaves out all.
        unusable = sum(len(rows) for code, (rows, _) in self.problems.items() if code != REJECTED)
        if self.last is not None:
            why = "Rows that were not read cannot be learned from."
            findings.append(Finding(UNREAD, "error", 1, (self.last[0],), self._unread(), why, UNREAD_FIX, source=self.name, is_read=False))
        for code, (rows, problem) in self.problems.items():
            what = f"{self._place(rows[0])} {problem.what}"
            if code == "DATA-SHAPE" and len(self.formats) > 1:
                what = self._mixed()
            elif len(rows) > 1:
                what += f" (the first of {len(rows)} such rows)"
            if code == REJECTED:
                why = "Only good answers are learned; such rows are left out."
                findings.append(
                    Finding(code, "note", len(rows), tuple(rows[:SHOWN_ROWS]), _sentence(what), why, source=self.name, is_read=False)
                )
                continue
            findings.append(
                Finding(
                    code=code,
                    severity="error",
                    count=len(rows),
                    rows=tuple(rows[:SHOWN_ROWS]),
                    what=_sentence(what),
                    why="Such a row cannot be learned from.",
                    fix=f"{problem.fix.rstrip('.') or 'Correct it'}; or leave out {_rows(len(rows), unusable)}, which keeps {num_rows}.",
                    fix_action={"action": "drop", "code": code},
                    source=self.name,
                    is_read=False,
                )
            )
        return findings

    def _unread(self) -> str:
        """Where and why the reading stopped, in a sentence; empty where it did not."""
        if self.last is None:
            return ""
        number, problem = self.last
        before = f"only the {number - 1:,} rows before it were" if number > 2 else "only the row before it was"
        return f"{_sentence(f'{self._place(number)} {problem.what}')} Nothing after it was read{f', {before}' if number > 1 else ''}."

    def _fixable(self, findings: list[Finding]) -> list[Finding]:
        """The findings; without buttons that write a new version where that would lack what was not read."""
        if self.last is None:
            return findings
        return [replace(found, fix_action=None) if (found.fix_action or {}).get("action") != "set" else found for found in findings]

    def _mixed(self) -> str:
        parts = (f"{count} × {name} (first: row {self.first_of.get(name, 1)})" for name, count in self.formats.most_common())
        return f"The file mixes {len(self.formats)} formats: {', '.join(parts)}"

    def _notes(self, detection: Detection, sample: list[dict[str, Any]], num_rows: int) -> list[Finding]:
        notes = [Finding(code, "note", 1, (), what, source=self.name) for code, what in self.notices.items()]
        ignored = [column for column in _IGNORED if column in sample[0]]
        if ignored:
            what, why = f"The column “{ignored[0]}” is refused and left out.", "It would let the file replace the chat template."
            fix = "Nothing to do, unless you meant it: then choose the template among the settings."
            notes.append(Finding("DATA-COLS", "warning", self.num_seen, (), what, why, fix, source=self.name))
        texts = [value for row in sample[:200] for value in row.values() if isinstance(value, str)]
        written = Counter(style_of(text) for text in texts) if detection.format.name == "text" else Counter()
        if style := next((style for style, _ in written.most_common() if style), ""):
            some = "The" if len(self.plain) == 0 else "Some of the"
            what = f"{some} texts are conversations written out in the style “{style}”; they were read as turns."
            why = "So the model learns the answers and its own markers instead of another model's."
            notes.append(Finding("DATA-TRANSCRIPT", "note", written[style], (), what, why, source=self.name))
        if 0 < len(self.plain) < num_rows:
            are = f"{len(self.plain):,} of {num_rows:,} rows are" if len(self.plain) > 1 else f"Row {self.plain[0]} is"
            what, why = f"{are} plain text beside conversations.", "All of a plain text is learned, questions in it too."
            rows, fix = tuple(self.plain[:SHOWN_ROWS]), "Look at the rows; write conversations as messages."
            notes.append(Finding("DATA-PLAIN", "warning", len(self.plain), rows, what, why, fix, source=self.name))
        if roles := self._changed_roles(detection, sample):
            pairs = ", ".join(f"{old} → {new}" for old, new in roles.items())
            notes.append(Finding("DATA-ROLES", "note", self.num_seen, (), f"Speakers were renamed: {pairs}.", source=self.name))
        return notes

    def _changed_roles(self, detection: Detection, sample: list[dict[str, Any]]) -> dict[str, str]:
        found: dict[str, str] = {}
        if detection.format.name not in ("messages", "sharegpt"):
            return found
        for row in sample:
            for turns in row.values():
                for turn in turns if isinstance(turns, list) else ():
                    if isinstance(turn, dict):
                        for key in ("role", "from", "speaker", "sender", "author", "user"):
                            name = turn.get(key)
                            if isinstance(name, str) and (role := ROLES.get(name.lower())) and role != name:
                                found[name[:40]] = "assistant" if role == "call" else role
        return found

    def _all_problems(self) -> Iterator[Problem]:
        for code, (rows, problem) in self.problems.items():
            some = f"{len(rows):,} of {'' if self.is_at_end else 'the first '}{{}} rows cannot be used"
            of_all = f"none of the {'' if self.is_at_end else 'first '}{{}} rows can be used" if len(rows) == self.num_seen else some
            why = _sentence(of_all.format(f"{self.num_seen:,}")) if self.num_seen > 1 else ""
            yield Problem(f"{self.name} {self._place(rows[0])}", _sentence(problem.what), why, problem.fix, code)
        if self.last is not None:
            number, problem = self.last
            yield Problem(
                f"{self.name} {self._place(number)}", _sentence(problem.what), "Nothing after it can be read.", problem.fix, problem.code
            )

    def _nothing(self, file_type: str) -> DataError:
        """No row can be used: every reason, with its place."""
        if problems := list(self._all_problems()):
            return DataError(problems=problems, code=problems[0].code)
        if file_type in ("csv", "tsv"):
            what = "The file has a header but no rows."
        elif file_type == "parquet":
            what = "The file has columns but no rows."
        else:
            with self.path.open("rb") as file:
                num_lines = sum(1 for _ in itertools.islice(file, 1_000_000))
            what = f"The file has no rows, only {num_lines} blank {'line' if num_lines == 1 else 'lines'}."
        return DataError(what, where=self.name, fix="Choose a file with rows.", code="DATA-EMPTY")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _rows(count: int, of: int) -> str:
    if count < of:
        return f"all {of} rows that cannot be used"
    return "this row" if count == 1 else f"these {count} rows"
