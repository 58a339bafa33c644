"""What is known about a dataset before anything is trained: format, counts, findings, verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from qlora_ui.base.errors import DataError, Problem

Severity = Literal["error", "warning", "note"]
Verdict = Literal["ready", "look", "not-trainable"]

UNREAD = "DATA-UNREAD"
"""The code of the place after which nothing could be read."""
UNREAD_FIX = "Correct the file there; leaving out the one row would leave out all that follows."
SHOWN_ROWS = 200
"""Row numbers that a finding carries; `count` is the true number."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a dataset that the user should know."""

    code: str
    severity: Severity
    count: int
    rows: tuple[int, ...]
    """Numbers of rows as the file counts them, from 1; the first SHOWN_ROWS."""
    what: str
    why: str = ""
    fix: str = ""
    fix_action: Mapping[str, Any] | None = None
    """What the fix button does: `{"action": "drop", "code": ...}` or `{"action": "set", "path": ..., "value": ...}`;
    `data.fixes.apply_fix` and the form take it as it is."""
    source: str = ""
    is_read: bool = True
    """Whether its rows became conversations, so that they can be shown."""

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON."""
        value = asdict(self)
        value["rows"] = list(self.rows)
        return value

    def as_problem(self) -> Problem:
        """The finding as a problem of an error."""
        place = f"{self.source} row {self.rows[0]}" if self.rows else self.source
        return Problem(place.strip(), self.what, self.why, self.fix, self.code)


@dataclass(frozen=True, slots=True)
class FormatVote:
    """Why a format was taken or not."""

    name: str
    fits: int
    """Rows of the sample that it fits."""
    reason: str
    """Empty for the chosen one; else why the first row that does not fit is not of this format."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source after parsing: the numbers of its rows are those of its file."""

    source: str
    name: str
    file_type: str
    format: str
    why: str
    votes: tuple[FormatVote, ...]
    num_rows: int
    """Rows that became conversations."""
    num_seen: int
    """Rows of the file, unusable ones included."""
    content_hash: str
    """SHA-256 of the source's bytes."""
    folder: str
    """Where the normalised rows lie."""
    columns: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    """Names of speakers that were changed: human to user."""
    scripts: Mapping[str, float] = field(default_factory=dict)
    """Share of the letters by script: Latin, Cyrillic, Han."""
    languages: Mapping[str, float] = field(default_factory=dict)
    """Rough share of rows by language, told by their commonest words."""
    num_bytes: int = 0
    findings: tuple[Finding, ...] = ()
    unread: str = ""
    """Where the reading had to stop and why, as a sentence; empty where the file was read to its end."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SourceReport:
        """The report from its JSON."""
        known = dict(value)
        known["votes"] = tuple(FormatVote(**vote) for vote in value["votes"])
        known["columns"] = tuple(value["columns"])
        known["findings"] = tuple(Finding(**{**item, "rows": tuple(item["rows"])}) for item in value["findings"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything about the data of a run that can be told."""

    sources: tuple[SourceReport, ...]
    num_rows: int
    """Conversations after slices and weights: one pass."""
    findings: tuple[Finding, ...]
    content_hash: str
    """Hash over the sources, their slices, format and mapping."""
    tokens: Mapping[str, Any] | None = None
    """Counts in tokens, where a model was given."""

    @property
    def format(self) -> str:
        """The format, or `mixed` where sources differ."""
        formats = {source.format for source in self.sources}
        return formats.pop() if len(formats) == 1 else "mixed"

    @property
    def why(self) -> str:
        """Why this format, in words; where sources differ, with their names."""
        names: dict[str, list[str]] = {}
        for source in self.sources:
            names.setdefault(source.why, []).append(source.name)
        if len(names) < 2:
            return "".join(names)
        return " ".join(f"{_listed(mine)}: {why}" for why, mine in names.items())

    @property
    def verdict(self) -> Verdict:
        """Whether it can be trained on as it is."""
        return verdict_of(self.findings)

    def with_tokens(self, tokens: Mapping[str, Any], findings: Iterable[Finding]) -> DataReport:
        """The report with what the tokenizer says added; a finding in tokens replaces the one in text of the same code.

        Which control tokens there are only the tokenizer knows: those of other models are plain letters.
        """
        added = tuple(findings)
        codes = {"DATA-SPECIAL", *(finding.code for finding in added)}
        kept = tuple(finding for finding in self.findings if finding.code not in codes)
        return replace(self, tokens=tokens, findings=in_order((*kept, *added)))

    def as_dict(self) -> dict[str, Any]:
        """The report as `lint --json` prints it."""
        return {
            "format": self.format,
            "why": self.why,
            "rows": self.num_rows,
            "verdict": self.verdict,
            "tokens": dict(self.tokens or {}),
            "findings": [finding.as_dict() for finding in self.findings],
            "content_hash": self.content_hash,
            "sources": [
                {
                    "source": source.source,
                    "name": source.name,
                    "file_type": source.file_type,
                    "format": source.format,
                    "rows": source.num_rows,
                    "rows_seen": source.num_seen,
                    "columns": list(source.columns),
                    "mapping": dict(source.mapping),
                    "roles": dict(source.roles),
                    "scripts": dict(source.scripts),
                    "languages": dict(source.languages),
                    "bytes": source.num_bytes,
                    "formats": [asdict(vote) for vote in source.votes],
                }
                for source in self.sources
            ],
        }

    def raise_if_not_trainable(self) -> None:
        """Raise DataError with every finding that stops training."""
        errors = [finding.as_problem() for finding in self.findings if finding.severity == "error"]
        if errors:
            raise DataError(problems=errors, code=errors[0].code)

    def raise_if_unread(self) -> None:
        """Raise DataError where a file was not read to its end: what is made from it would lack the rest without a word."""
        problems = [
            Problem(source.name, source.unread, "What is made from it would lack the rest.", UNREAD_FIX, UNREAD)
            for source in self.sources
            if source.unread
        ]
        if problems:
            raise DataError(problems=problems, code=UNREAD)


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """ready, look (a warning) or not-trainable (an error)."""
    severities = {finding.severity for finding in findings}
    return "not-trainable" if "error" in severities else "look" if "warning" in severities else "ready"


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; the more rows the earlier."""
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda finding: (rank[finding.severity], -finding.count)))


def _listed(names: list[str]) -> str:
    """Names of sources in a sentence; of many the first two."""
    short = [name if len(name) <= 40 else f"{name[:20]}…{name[-18:]}" for name in dict.fromkeys(names)]
    return ", ".join(short) if len(short) < 4 else f"{short[0]}, {short[1]} and {len(short) - 2} more"
