"""Answers laid side by side: which words differ, how sure a model was of each token, and who is preferred."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from qlora_ui.catalog.metrics import UNSPACED
from qlora_ui.runs.comparison import EQUAL, Compared, Comparison, TokenScore
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.words import ago

MOST_PIECES = 1500
"""Words and spaces of two answers that are still laid against each other; it takes their product in time."""
LEVELS = ((0.5, 0), (0.1, 1), (0.01, 2), (0.0, 3))
"""Least probability of a token and its shade: the rarer, the stronger."""
_PIECES = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|\s+|[^\w\s]")
_FORMS = (("csv", "Table (CSV)"), ("jsonl", "JSON lines"), ("md", "Markdown"))


class TextScore(Protocol):
    """A text under one side, as the engine gives it."""

    @property
    def side(self) -> str: ...
    @property
    def tokens(self) -> Sequence[TokenScore]: ...
    @property
    def perplexity(self) -> float: ...


LEGEND = (
    '<p class="q-key"><span><i class="q-sure">word</i> it would have said this</span>'
    '<span><i class="q-sure q-sure-1">word</i> under 50 %</span><span><i class="q-sure q-sure-2">word</i> under 10 %</span>'
    '<span><i class="q-sure q-sure-3">word</i> under 1 %: a surprise</span></p>'
)


def comparison_html(comparison: Comparison, run_id: str, *, is_running: bool, opened: Collection[str] = ()) -> str:
    """All rows of a comparison, with votes where it is blind, and the ways to take it away.

    `opened` are the answers (`TIME-ROW-PLACE`) that are shown word by word: a comparison may have a hundred thousand words.
    """
    if not comparison.rows:
        return "" if is_running else '<p class="q-small">Nothing was answered.</p>'
    # While rows still come, somebody who has voted on all so far must not learn who is who.
    hides = comparison.hides_names or (comparison.is_blind and is_running)
    rows = "".join(_row(comparison, index, row, run_id, hides=hides, opened=opened) for index, row in enumerate(comparison.rows))
    # A file has the names in it.
    saved = [act_button(f"Save as {label}", "comparison-save", run_id, look="link", form=form) for form, label in _FORMS]
    tools = [act_button("Show who is who", "comparison-names", run_id, look="link")] if hides else saved
    counted = "" if hides else _tally(comparison)
    marking = "Words are marked where they differ from the first answer; there, from the second."
    is_short = not is_running and len(comparison.rows) < comparison.num_asked
    missing = f" Only {len(comparison.rows)} of {comparison.num_asked} questions were answered." if is_short else ""
    about = f"Asked {ago(comparison.time)}.{missing} {comparison.asked} {marking}"
    saving = "" if is_running else f'<p class="q-answer-tools">{" ".join(tools)}</p>'
    return (
        f'<section class="q-card q-comparison">{_warned(comparison.warning)}{counted}<p class="q-small">{escape(about)}</p>'
        f'<ol class="q-examples">{rows}</ol>{saving}</section>'
    )


def scores_html(scores: Sequence[TextScore], names: Mapping[str, str], warning: str = "") -> str:
    """A text's tokens under each side, with its perplexity; `warning` is what to know of the adapter."""
    cards = "".join(
        f'<article class="q-answer q-answer-{escape(score.side)}"><h3 class="q-answer-head">{escape(names.get(score.side, score.side))}: '
        f"{_perplexity(score.perplexity)}</h3>{_tokens(score.tokens)}</article>"
        for score in scores
    )
    words = "Perplexity: between how many equally likely tokens it hesitates at each step. Lower is less surprised."
    head = f'{_warned(warning)}<p class="q-small">{words}</p>'
    return f'<section class="q-card q-comparison">{head}<div class="q-answers">{cards}</div>{LEGEND}</section>'


def _warned(words: str) -> str:
    return f'<p class="q-note q-note-warn q-small">{escape(words)}</p>' if words else ""


@functools.lru_cache(maxsize=1024)
def marked(text: str, other: str) -> str:
    """The text as HTML, with the words marked that `other` has not at their place."""
    own, against = _PIECES.findall(text), _PIECES.findall(other)
    if not other.strip() or len(own) + len(against) > MOST_PIECES:
        return escape(text)
    parts = []
    for kind, start, end, _, _ in difflib.SequenceMatcher(None, own, against, autojunk=False).get_opcodes():
        piece = escape("".join(own[start:end]))
        parts.append(f"<mark>{piece}</mark>" if kind != "equal" and piece.strip() else piece)
    return "".join(parts)


def others_html(others: Sequence[tuple[str, str]], chosen: str, num_older: int = 0) -> str:
    """A list of adapters to lay beside, as (key, words), and how many older ones are not in it; nothing where there is none."""
    if not others:
        return ""
    options = "".join(
        f'<option value="{escape(key)}"{" selected" if key == chosen else ""}>{escape(label)}</option>'
        for key, label in [("", "nobody else"), *others]
    )
    are = "1 older one is" if num_older == 1 else f"{num_older:,} older ones are"
    words = f"{are} not in the list. Choose the older one above, and lay the newer one beside it."
    older = f'<span class="q-small q-num">{words}</span>' if num_older else ""
    picker = f'<label class="q-run-picker"><span>And beside them</span><select data-change="beside">{options}</select></label>'
    return f'<div class="q-run-pick">{picker}{older}</div>' if older else picker


def _row(comparison: Comparison, index: int, row: Compared, run_id: str, *, hides: bool, opened: Collection[str]) -> str:
    asked = f'<p class="q-h3 q-asked">{escape(row.question.text)}</p>'
    if row.problem:
        return f"<li>{asked}{_warned(row.problem)}</li>"
    sides = list(row.order) if hides else [side for side in comparison.names if side in row.answers]
    cards = []
    for place, side in enumerate(sides):
        other = row.answers[sides[0] if place else sides[1]] if len(sides) > 1 else ""
        said = marked(row.answers[side].strip(), other.strip()) or "(nothing)"
        if hides:
            cards.append(_card(f"Answer {_letter(place)}", said, "", _vote_button(row, index, place, run_id)))
        else:
            is_preferred = row.vote == side
            key = f"{comparison.time:.0f}-{index}-{place}"
            words = _how_sure(row.scores.get(side, ()), key, run_id, is_open=key in opened)
            cards.append(_card(comparison.names[side], said, side, words, is_preferred))
    if row.question.reference:
        cards.append(_card("The row’s answer", escape(row.question.reference), "reference"))
    # Four stand better as two pairs than as three and one.
    columns = "three" if len(cards) == 3 else "two"
    equal = _equal_button(row, index, run_id) if hides else ""
    return f'<li>{asked}<div class="q-answers q-answers-{columns}">{"".join(cards)}</div>{equal}</li>'


def _card(title: str, said: str, side: str, below: str = "", is_preferred: bool = False) -> str:
    look = f" q-answer-{side if side in ('base', 'adapter', 'reference') else 'more'}" if side else ""
    preferred = " · preferred" if is_preferred else ""
    return (
        f'<article class="q-answer{look}"><h3 class="q-answer-head">{escape(title + preferred)}</h3>'
        f'<div class="q-prose">{said}</div>{below}</article>'
    )


def _vote_button(row: Compared, index: int, place: int, run_id: str) -> str:
    is_chosen = row.vote == row.order[place]
    label = f"✓ {_letter(place)} is better" if is_chosen else f"{_letter(place)} is better"
    button = act_button(label, "comparison-vote", run_id, look="chip", row=str(index), choice=str(place))
    return f'<p class="q-answer-tools">{button}</p>'


def _equal_button(row: Compared, index: int, run_id: str) -> str:
    label = "✓ None is better" if row.vote == EQUAL else "None is better"
    button = act_button(label, "comparison-vote", run_id, look="chip", row=str(index), choice=EQUAL)
    return f'<p class="q-answer-tools">{button}</p>'


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _tally(comparison: Comparison) -> str:
    votes = comparison.tally()
    if not sum(votes.values()):
        return ""
    parts = [f"{comparison.names[side]} {count}" for side, count in votes.items() if side != EQUAL]
    if votes[EQUAL]:
        parts.append(f"equal {votes[EQUAL]}")
    return f'<p class="q-h3 q-num" role="status">Preferred: {escape(" · ".join(parts))}</p>'


def _how_sure(scores: Sequence[TokenScore], key: str, run_id: str, *, is_open: bool) -> str:
    if not scores:
        return ""
    label = "Hide how sure it was" if is_open else "How sure it was of each word"
    button = act_button(label, "comparison-sure", run_id, look="link", key=key)
    return f'<p class="q-answer-tools">{button}</p>{f"{_tokens(scores)}{LEGEND}" if is_open else ""}'


def _tokens(scores: Sequence[TokenScore]) -> str:
    return f'<div class="q-sure-text">{"".join(map(_token, scores))}</div>'


def _token(score: TokenScore) -> str:
    if score.logprob is None:
        return f'<i class="q-sure">{escape(score.text)}</i>'
    probability = math.exp(score.logprob)
    level = next(level for least, level in LEVELS if probability >= least)
    title = f"{_percent(probability)}, choice {score.rank:,}" + (f"; it would have said “{score.instead}”" if score.rank != 1 else "")
    return f'<i class="q-sure{f" q-sure-{level}" if level else ""}" title="{escape(title)}">{escape(score.text)}</i>'


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %" if share >= 1e-6 else "next to 0 %"


def _perplexity(value: Any) -> str:
    if not math.isfinite(value):
        return "too short to measure"
    return f"perplexity {value:,.2f}" if value < 1e6 else "perplexity above a million"
