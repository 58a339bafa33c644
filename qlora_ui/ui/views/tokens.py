"""One row as the trainer sees it: every token, what is learned of it, and where it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qlora_ui.base.units import format_percent
from qlora_ui.ui.markup import escape

SHOWN_AT_START, SHOWN_AT_END = 500, 1000
"""Tokens of a long row that are drawn: where it begins, and where its answer stands."""
BEHIND_CUT = 100
"""Of those that are cut off."""
_VISIBLE = {"\n": "↵\n", "\t": "→\t", "": "·"}


class Token(Protocol):
    """A token as the engine's preview gives it."""

    @property
    def text(self) -> str: ...
    @property
    def is_trained(self) -> bool: ...
    @property
    def is_special(self) -> bool: ...
    @property
    def is_cut(self) -> bool: ...
    @property
    def id(self) -> int: ...


class Row(Protocol):
    """The engine's preview of a row, as far as it is drawn."""

    @property
    def tokens(self) -> Sequence[Token]: ...
    @property
    def cut_at(self) -> int | None: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_kept(self) -> int: ...
    @property
    def num_trained(self) -> int: ...
    @property
    def trained_share(self) -> float: ...
    @property
    def trains_end(self) -> bool: ...
    @property
    def refused(self) -> str: ...


LEGEND = (
    '<p class="q-key"><span><i class="q-token q-token-learned">learned</i> graded on this</span>'
    '<span><i class="q-token">read</i> read, not graded</span>'
    '<span><i class="q-token q-token-special">control</i> control token of the template</span></p>'
)


def row_html(row: Row) -> str:
    """The row's tokens in their colours, the cut drawn, and one sentence of numbers."""
    if row.refused:
        return f'<div class="q-note q-note-bad"><strong>This row is not used.</strong><p>{escape(row.refused)}</p></div>'
    pieces, drawn = [], 0
    for part in _parts(row):
        pieces.append(_more(part.start - drawn))
        for place in part:
            if row.cut_at is not None and place == row.cut_at:
                pieces.append(_cut(row))
            pieces.append(_token(row.tokens[place], place))
        drawn = part.stop
    pieces.append(_more(len(row.tokens) - drawn))
    return f'{_numbers(row)}<div class="q-tokens" tabindex="0" role="group" aria-label="Tokens of this row">{"".join(pieces)}</div>{LEGEND}'


def _parts(row: Row) -> list[range]:
    """Places of the tokens that are drawn."""
    num_tokens = len(row.tokens)
    if num_tokens <= SHOWN_AT_START + SHOWN_AT_END:
        return [range(num_tokens)]
    end = num_tokens if not row.cut_at else min(row.cut_at + BEHIND_CUT, num_tokens)
    # A row that is left out as a whole is cut at 0; what follows a cut near its start is no answer.
    start = max(end - SHOWN_AT_END, min(SHOWN_AT_START, end))
    return [range(min(SHOWN_AT_START, start)), range(start, end)]


def _more(num_tokens: int) -> str:
    return f'<span class="q-small"> … {num_tokens:,} more … </span>' if num_tokens else ""


def plain_html(turns: Sequence[tuple[str, str]], note: str) -> str:
    """The row as turns, before a tokenizer has seen it."""
    rows = "".join(
        f'<div class="q-turn q-turn-{escape(role)}"><span class="q-turn-role">{escape(role)}</span><div>{escape(text)}</div></div>'
        for role, text in turns
    )
    return f'<p class="q-small">{note}</p><div class="q-turns">{rows}</div>'


def _numbers(row: Row) -> str:
    end = "It learns where to stop." if row.trains_end else "It does not learn where to stop: no end token is graded."
    cut = f" {row.num_tokens - row.num_kept:,} are cut off." if row.cut_at is not None else ""
    learned = "1 is learned" if row.num_trained == 1 else f"{row.num_trained:,} are learned"
    words = f"{row.num_tokens:,} tokens.{cut} {learned} ({format_percent(row.trained_share)}). {end}"
    return f'<p class="q-small q-num" id="q-row-numbers">{escape(words)}</p>'


def _cut(row: Row) -> str:
    words = "left out: longer than the limit" if row.cut_at == 0 else f"cut here, after {row.num_kept:,} tokens"
    return f'<span class="q-cut"><b>{escape(words)}</b></span>'


def _token(token: Token, place: int) -> str:
    kinds = ["q-token", f"q-token-{'b' if place % 2 else 'a'}"]
    if token.is_trained:
        kinds.append("q-token-learned")
    if token.is_special:
        kinds.append("q-token-special")
    if token.is_cut:
        kinds.append("q-token-cut")
    text = token.text
    for sign, shown in _VISIBLE.items():
        text = text.replace(sign, shown) if sign else text or shown
    return f'<i class="{" ".join(kinds)}" title="{token.id}">{escape(text)}</i>'
