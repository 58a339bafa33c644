"""The Data tab: how long the rows are in tokens, where the limit cuts, a better limit; languages, and why the format is what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qlora_ui.base.units import MIB, format_bytes, format_count
from qlora_ui.data.report import DataReport
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.settings.run_config import option_by_path
from qlora_ui.settings.sections import BUILTIN_MODEL
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape, prose

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft

_WIDTH, _HEIGHT = 300, 64
_MAX_LENGTH = "data.max_length"
_NOTICED_BYTES = 16 * MIB
"""A smaller difference in memory is none to a user."""


def lengths_html(draft: Draft, report: DataReport) -> str:
    """A histogram of the rows' lengths with the line of the limit, what it cuts, and the limit that the data proposes; empty
    before tokens are counted."""
    tokens = report.tokens
    if not tokens or "histogram" not in tokens:
        return ""
    limit = int(tokens["max_length"])
    words = _length_words(tokens, report.num_rows, limit)
    return (
        f'<figure class="q-lengths">{_histogram(tokens["histogram"], limit, words)}'
        f'<figcaption class="q-small q-num">{escape(words)}</figcaption></figure>{_proposal(draft, tokens, limit)}'
    )


def _length_words(tokens: Mapping[str, Any], num_rows: int, limit: int) -> str:
    cut = int(tokens["truncated"])
    lengths = f"{tokens['shortest']:,} to {tokens['longest']:,} tokens a row, half of them under {tokens['median']:,}"
    if tokens["shortest"] == tokens["longest"]:
        lengths = f"{tokens['longest']:,} tokens {'in the row' if num_rows == 1 else 'in every row'}"
    some = f"{cut:,} of {num_rows:,} rows {'is' if cut == 1 else 'are'}" if cut else "none is"
    over = f"{some} longer than the limit of {limit:,}"
    num_answers = int(tokens.get("answers_cut", 0))
    answers = f", {num_answers:,} {'loses a part of its' if num_answers == 1 else 'lose a part of their'} answer" if num_answers else ""
    return f"{lengths}; {over}{answers}. {100 * tokens['trained_share']:.0f} % of all tokens are learned."


def _histogram(histogram: Mapping[str, Any], limit: int, words: str) -> str:
    """Bars of rows by length as SVG; bars beyond the limit in the colour of a warning, the limit as a dashed line."""
    edges, counts = histogram["edges"], histogram["counts"]
    if not counts:
        return ""
    right = max(edges[-1], 1)
    most = max(counts) or 1
    bars = []
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        left, width = _WIDTH * start / right, max(_WIDTH * (end - start) / right - 1, 1)
        height = max(_HEIGHT * count / most, 2) if count else 0
        over = ' class="q-over"' if start >= limit else ""
        title = f"<title>{start:,} to {end:,} tokens: {count:,} rows</title>"
        bars.append(f'<rect{over} x="{left:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}">{title}</rect>')
    line = f'<line x1="{_WIDTH * limit / right:.1f}" x2="{_WIDTH * limit / right:.1f}" y1="0" y2="{_HEIGHT}"/>' if limit <= right else ""
    name = escape(f"Lengths of the rows: {words}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{name}">'
        f"{''.join(bars)}{line}</svg>"
        f'<div class="q-lengths-axis q-small q-num" aria-hidden="true"><span>{edges[0]:,}</span><span>{edges[-1]:,} tokens</span></div>'
    )


def _proposal(draft: Draft, tokens: Mapping[str, Any], limit: int) -> str:
    """The limit that holds 95 % of the rows, with what it costs or saves in memory and what it cuts; empty where it is set already."""
    proposed = int(tokens["proposed_max_length"])
    if proposed == limit or draft.config is None or draft.facts is None or draft.memory is None:
        return ""
    other = estimate_memory(draft.facts, draft.config.changed({_MAX_LENGTH: proposed}), draft.device, draft.shape)
    change = other.total_bytes - draft.memory.total_bytes
    cuts = int(tokens["cut_at_proposed"])
    if abs(change) <= _NOTICED_BYTES and cuts == tokens["truncated"]:
        return ""
    cost = (
        f"takes {format_bytes(abs(change))} {'more' if change > 0 else 'less'} memory"
        if abs(change) > _NOTICED_BYTES
        else "takes the same memory"
    )
    cut = f"cuts {cuts:,} {'row' if cuts == 1 else 'rows'}" if cuts else "cuts no row"
    label = option_by_path()[_MAX_LENGTH].meta.label
    button = act_button(f"Set “{label}” to {proposed:,}", "set-length", str(proposed), echo="Changing …")
    words = f"{proposed:,} tokens would fit this data: it {cost} and {cut}."
    return f'<p class="q-small q-num">{words}</p><div class="q-finding-do">{button}</div>'


def languages_html(report: DataReport, model_id: str = "") -> str:
    """The commonest languages and scripts of all sources, by rows; empty where nothing could be told.

    Also that the built-in model, where it is chosen, does not speak most of them.
    """
    shares: list[str] = []
    for name, word in (("languages", "Language"), ("scripts", "Script")):
        total: Counter[str] = Counter()
        for source in report.sources:
            for what, share in getattr(source, name).items():
                total[what] += share * source.num_rows
        rows = sum(source.num_rows for source in report.sources) or 1
        listed = [f"{what} {100 * share / rows:.0f} %" for what, share in total.most_common(3) if share / rows >= 0.005]
        if listed and set(total) != {"unclear"}:
            shares.append(f"{word}: {', '.join(listed)}.")
        told = sum(total.values()) - total["unclear"]
        if name == "languages" and model_id == BUILTIN_MODEL and total["English"] < told / 2 and told > rows / 5:
            shares.append("The built-in model speaks English only: another one learns these rows far better.")
    return f'<p class="q-small q-num" id="q-languages">{escape(" ".join(shares))}</p>' if shares else ""


def formats_html(report: DataReport) -> str:
    """A fold that says why the format was taken and why the others were not, for the first source."""
    source = next(iter(report.sources), None)
    if source is None or not source.votes:
        return ""
    labels = option_by_path()["data.format"].meta.choices
    rows = []
    for vote in sorted(source.votes, key=lambda vote: (vote.name != source.format, -vote.fits)):
        label = labels.get(vote.name, vote.name)
        if vote.name == source.format:
            rows.append(f"<li><strong>{escape(label)}</strong>: taken. It fits {format_count(vote.fits)} of the rows looked at.</li>")
        else:
            reason = vote.reason or f"fits {format_count(vote.fits)} rows too, but is less special"
            rows.append(f"<li><strong>{escape(label)}</strong>: not this, {prose(reason)}.</li>")
    return (
        '<details class="q-fold-plain" data-key="formats"><summary>Why this format and no other</summary>'
        f'<ul class="q-formats q-small">{"".join(rows)}</ul></details>'
    )
