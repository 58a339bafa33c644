"""The findings that only a tokenizer can tell: lengths, what is cut, what is learned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlora_ui.data.load import Conversations
from qlora_ui.data.report import SHOWN_ROWS, Finding, Severity
from qlora_ui.engine.dataset import usable_rows
from qlora_ui.engine.token_table import TokenTable
from qlora_ui.settings.run_config import option_by_path
from qlora_ui.settings.sections import DataSection

_ROUND_TO = 64
_BARS = 30
MAX_TOKENS = int(option_by_path()["data.max_length"].maximum or 0)
"""The longest conversation that can be set."""
_LOST = {"TPL-THOUGHT": "thought", "TPL-CALL": "call", "TPL-WORDS": "words"}

Array = np.ndarray[Any, Any]
Words = tuple[Severity, str, str, str, dict[str, Any] | None]
"""Severity, what, why, fix, and what a button for the fix does."""


@dataclass(frozen=True, slots=True)
class TokenLint:
    """Counts and findings in tokens."""

    tokens: dict[str, Any]
    findings: tuple[Finding, ...]
    flagged: dict[str, Array]
    """Code of a finding to the positions of its rows, all of them."""
    worst: Array
    """Positions of rows, the most troubled first."""


def lint_tokens(
    table: TokenTable,
    conversations: Conversations,
    data: DataSection,
    *,
    end_is_token: bool = True,
    overlap: Array | None = None,
    context_tokens: int | None = None,
) -> TokenLint:
    """What can be said of rows that are tokenized; `overlap`: positions of held-back rows that are trained on too.

    `context_tokens`: what the model was made for, where that is known; no longer conversation is proposed.
    """
    lengths, learned, left = table.lengths, table.trained_counts(), table.trained_counts(data.max_length)
    is_refused = np.zeros(len(table), dtype=bool)
    is_refused[list(table.refused)] = True
    is_long = lengths > data.max_length
    is_cut = is_long if data.too_long == "cut" else np.zeros(len(table), dtype=bool)
    flagged = {
        "TPL-ROWS": np.flatnonzero(is_refused),
        "DATA-LABEL": np.flatnonzero((learned == 0) & ~is_refused),
        "DATA-ANSWER-LOST": np.flatnonzero(is_cut & (left == 0) & (learned > 0)),
        "DATA-ANSWER-CUT": np.flatnonzero(is_cut & (left > 0) & (left < learned)),
        "DATA-TRUNCATED": np.flatnonzero(is_long),
        "DATA-CONTEXT": _beyond(lengths, data, context_tokens),
        "DATA-SPECIAL": np.array(table.marks.get("special", []), dtype=np.int64),
        "DATA-BOS": np.array(table.marks.get("bos", []), dtype=np.int64),
        **{code: np.array(table.marks.get(mark, []), dtype=np.int64) for code, mark in _LOST.items()},
        "DATA-OVERLAP": overlap if overlap is not None else np.zeros(0, dtype=np.int64),
    }
    tokens = _counts(table, data, flagged, context_tokens)
    findings = []
    for code, rows in flagged.items():
        if len(rows):
            severity, what, why, fix, action = _words(code, rows, tokens, table, data)
            numbers, source = _numbers(rows[:SHOWN_ROWS], conversations)
            findings.append(Finding(code, severity, len(rows), numbers, what, why, fix, action, source))
    if not end_is_token and len(table) and not is_refused.all():
        findings.append(
            Finding(
                "TPL-END", "warning", len(table), (), "The chat template writes no end token after an answer.",
                "The model would not learn where to stop.", "Choose a chat template that ends turns, such as ChatML.",
            )
        )  # fmt: skip
    return TokenLint(tokens, tuple(findings), flagged, _worst(table, left, learned, data))


def propose_max_length(lengths: Array) -> int:
    """A length that holds 95 % of the rows, rounded up to 64."""
    return max(_ROUND_TO, math.ceil(float(np.percentile(lengths, 95)) / _ROUND_TO) * _ROUND_TO) if len(lengths) else _ROUND_TO


def _beyond(lengths: Array, data: DataSection, context_tokens: int | None) -> Array:
    """Rows of which more would be trained on than the model was made for."""
    if context_tokens is None or data.max_length <= context_tokens:
        return np.zeros(0, dtype=np.int64)
    is_used = (lengths <= data.max_length) | (data.too_long != "drop")
    return np.flatnonzero((lengths > context_tokens) & is_used)


def _counts(table: TokenTable, data: DataSection, flagged: dict[str, Array], context_tokens: int | None) -> dict[str, Any]:
    lengths = table.lengths
    if not len(lengths):
        return {}
    left = table.trained_counts(data.max_length)
    kept = np.minimum(lengths, data.max_length)
    used = usable_rows(table, data)
    num_kept, num_trained = int(kept[used].sum()), int(left[used].sum())
    proposed = min(propose_max_length(lengths), context_tokens or MAX_TOKENS)
    longest = int(lengths.max())
    edges = np.unique(np.linspace(0, max(longest, 1), _BARS + 1).round().astype(int))
    return {
        "total": int(lengths.sum()),
        "usable": _usable(table, data, kept, left),
        "kept": num_kept,
        "trained": num_trained,
        "trained_share": round(num_trained / max(num_kept, 1), 4),
        "mean": round(float(lengths.mean()), 1),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "p99": int(np.percentile(lengths, 99)),
        "shortest": int(lengths.min()),
        "longest": longest,
        "max_length": data.max_length,
        "proposed_max_length": proposed,
        "context": context_tokens,
        "cut_at_proposed": int((lengths > proposed).sum()),
        "truncated": len(flagged["DATA-TRUNCATED"]),
        "answers_cut": len(flagged["DATA-ANSWER-CUT"]),
        "without_answer": len(flagged["DATA-LABEL"]) + len(flagged["DATA-ANSWER-LOST"]),
        # From which the estimate says how many rows a shorter limit would cut, to half a hundredth.
        "quantiles": np.percentile(lengths, np.linspace(0, 100, 201)).astype(int).tolist(),
        "histogram": {"edges": edges.tolist(), "counts": np.histogram(lengths, bins=edges)[0].tolist()},
    }


def _usable(table: TokenTable, data: DataSection, kept: Array, left: Array) -> dict[str, Any]:
    """Of the rows that are trained on and checked: their number, and their tokens as the trainer gets them."""
    rows = usable_rows(table, data)
    if not rows.any():
        return {"rows": 0}
    return {
        "rows": int(rows.sum()),
        "mean": round(float(kept[rows].mean()), 1),
        "longest": int(table.lengths[rows].max()),
        "trained_share": round(float(left[rows].sum() / kept[rows].sum()), 4),
    }


def _worst(table: TokenTable, left: Array, learned: Array, data: DataSection) -> Array:
    """Rows by how much is wrong: refused, nothing learned, most of the answer cut, cut, control tokens, then long ones."""
    if not len(table):
        return np.zeros(0, dtype=np.int64)
    lost = 1 - left / np.maximum(learned, 1)
    score = np.where(left == 0, 3.0, lost) + (table.lengths > data.max_length) * 0.5 + table.lengths / (table.lengths.max() + 1) * 0.1
    score[list(table.refused)] = 4.0
    for mark in table.marks.values():
        score[mark] += 0.3
    return np.argsort(-score, kind="stable")


def _numbers(rows: Iterable[int], conversations: Conversations) -> tuple[tuple[int, ...], str]:
    """The rows' numbers in their file, and the file's name where it is one."""
    numbers, files = [], set()
    for row in rows:
        file = conversations.files[int(conversations.file_numbers[row])]
        files.add(file.report.name)
        numbers.append(int(file.numbers[int(conversations.rows[row])]))
    return tuple(numbers), files.pop() if len(files) == 1 else "several files"


def _words(code: str, rows: Array, tokens: dict[str, Any], table: TokenTable, data: DataSection) -> Words:
    count, total = len(rows), len(table)
    of_all = f"{count:,} of {total:,} rows" if total > 1 else "The row"
    match code:
        case "TPL-ROWS":
            severity: Severity = "error" if count == total else "warning"
            what = f"{of_all} cannot be written by the chat template: {table.refused[int(rows[0])]}."
            return severity, what, "Such rows are left out.", "Drop them from the file.", _drop(code)
        case "DATA-LABEL":
            what = f"{of_all} {'have' if count > 1 else 'has'} nothing to learn: no answer."
            return "error" if count == total else "warning", what, "Such rows are left out.", "Drop them from the file.", _drop(code)
        case "DATA-ANSWER-LOST" | "DATA-ANSWER-CUT" | "DATA-TRUNCATED":
            return _length_words(code, rows, tokens, table, data, of_all=of_all)
        case "DATA-CONTEXT":
            context = tokens["context"]
            what = f"{of_all} {'are' if count > 1 else 'is'} longer than the {context} tokens that this model was made for."
            fix = f"Cut conversations at {context} tokens, or divide them."
            return "warning", what, "It has never learned to read what lies beyond.", fix, _set_length(context)
        case "DATA-SPECIAL" if data.neutralize_special_tokens:
            return "note", f"Control tokens in the text of {of_all} are turned into plain text.", "", "", None
        case "DATA-SPECIAL":
            what = f"Control tokens of this model's template stand inside the text of {of_all}."
            fix = "Disarm them, or drop the rows."
            return "warning", what, "The model takes them for the end of a turn.", fix, _set("data.neutralize_special_tokens", True)
        case "TPL-THOUGHT" if data.train_on == "answers":
            what = f"The chat template leaves out thoughts of earlier answers in {of_all}."
            why = "These answers would be learned as if nothing had been thought before them."
            return "warning", what, why, "Learn the last answer only.", _set("data.train_on", "last-answer")
        case "TPL-THOUGHT":
            what, why = f"The chat template leaves out thoughts of answers in {of_all}.", "They are not learned."
            return "warning", what, why, "Choose another chat template, such as ChatML, which keeps them.", None
        case "TPL-CALL":
            what, why = f"The chat template leaves out calls of tools in {of_all}.", "The model would learn to answer without them."
            return "warning", what, why, "Choose another chat template, such as ChatML, which keeps them.", None
        case "TPL-WORDS":
            what, why = f"The chat template leaves out or changes words of answers in {of_all}.", "What is left out is not learned."
            return "warning", what, why, "Look at such a row; ChatML, another chat template, keeps them.", None
        case "DATA-BOS":
            return "note", f"{of_all} began with a start token of their own; the second one was removed.", "", "", None
    what = f"{count:,} held-back {'rows are' if count > 1 else 'row is'} the same as rows that are trained on."
    fix = "Leave out rows that are there twice, or lower a weight above 1, which repeats them."
    return "warning", what, "The check would look better than it is.", fix, None


def _length_words(code: str, rows: Array, tokens: dict[str, Any], table: TokenTable, data: DataSection, *, of_all: str) -> Words:
    """Of rows that are longer than a conversation may be: what is lost of them, and which length would hold them."""
    count, total, limit = len(rows), len(table), data.max_length
    share = f"{100 * count / total:.0f} %" if count == total or count / total >= 0.01 else f"{100 * count / total:.1g} %"
    lose_their, be = ("lose their", "are") if count > 1 else ("loses its", "is")
    needed = int(table.lengths[rows].max())
    longer = max(_ROUND_TO, math.ceil(needed / _ROUND_TO) * _ROUND_TO)
    if code == "DATA-ANSWER-LOST":
        severity: Severity = "error" if count > total / 2 else "warning"
        what = f"{of_all} ({share}) {lose_their} whole answer at {limit} tokens; the longest has {needed}."
        why = "The question alone fills the length, so nothing is left to learn; they are left out."
        return severity, what, why, *_raised(code, longer, tokens)
    if code == "DATA-ANSWER-CUT":
        what = f"{of_all} ({share}) {lose_their} answer's end at {limit} tokens."
        return "warning", what, "The model would learn to break off.", *_raised(code, longer, tokens)
    what = f"{of_all} ({share}) {be} longer than {limit} tokens and {be} {'left out' if data.too_long == 'drop' else 'cut'}."
    why = f"What is {'left out' if data.too_long == 'drop' else 'cut'} is not learned."
    proposed, context = int(tokens["proposed_max_length"]), tokens["context"] or MAX_TOKENS
    value = min(proposed if proposed > limit else longer, context)
    if value <= limit:
        return "warning", what, why, *_raised(code, longer, tokens)
    left = int((table.lengths > value).sum())
    kept = f"{100 * (1 - left / total):.0f} % of the" if left else "all"
    fix = f"{value} tokens would keep {kept} rows whole, for more memory and time."
    return "warning", what, why, fix, _set_length(value)


def _raised(code: str, longer: int, tokens: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """How rows are kept that need `longer` tokens, and its button; never with more tokens than the model was made for."""
    context = tokens["context"] or MAX_TOKENS
    if longer <= context:
        return f"Raise the longest conversation to {longer}, or drop the rows.", _set_length(longer)
    if tokens["max_length"] < context:
        words = f"Raise the longest conversation to {context}, the most that this model was made for, or drop the rows."
        return words, _set_length(context)
    return f"No more than {context} tokens can be learned from at once: divide the rows, or drop them.", _drop(code)


def _drop(code: str) -> dict[str, Any]:
    return {"action": "drop", "code": code}


def _set(path: str, value: Any) -> dict[str, Any]:
    return {"action": "set", "path": path, "value": value}


def _set_length(num_tokens: int) -> dict[str, Any]:
    return _set("data.max_length", min(num_tokens, MAX_TOKENS))
