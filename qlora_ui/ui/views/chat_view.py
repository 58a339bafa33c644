"""The conversation as HTML: text exactly as it was typed and answered, code in boxes, numbers in small."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ui.base.units import format_percent
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.words import fold

SIDE_WORDS = {"base": "Base model", "adapter": "With your adapter"}
STOPPED_WORDS = {"length": "cut at the longest answer", "context": "its context is full", "stop": "stopped by you"}
TYPING = '<span class="q-typing" role="img" aria-label="answering"><i></i><i></i><i></i></span>'
MOST_TURNS = 1_000
_turns: OrderedDict[tuple[Any, ...], str] = OrderedDict()
# Models set code in lists in by its list, and wrap code that holds a fence in a longer one.
_FENCE = re.compile(r"^([ \t]*)(```+|~~~+)([^\n`]*)\n(.*?)(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!&#96;)((?:&#96;)+)(?!&#96;)(.+?)(?<!&#96;)\1(?!&#96;)")  # as `escape` leaves backticks
# Stars within code are code, and those between numbers and names a power.
_BOLD = re.compile(r"(<code>.*?</code>)|(?<![0-9A-Za-z_*)])\*\*(?=\S)((?:<code>.*?</code>|[^*\n])+?)(?<=\S)\*\*(?![0-9A-Za-z_*])")


def kept_turn_html(
    index: int, turn: Any, notes: Any, *, is_last: bool, is_answering: bool, waiting: tuple[str, ...] = (), end: str = ""
) -> str:
    """`turn_html`, kept where the turn is answered: a page asks for all of them with each piece of an answer."""
    if is_answering:
        return turn_html(index, turn, notes, is_last=is_last, is_answering=is_answering, waiting=waiting, end=end)
    known = ((side, repr(answer)) for side, answer in notes.answers.items())
    key = (index, notes.key, turn.question, tuple(turn.answers.items()), notes.reference, tuple(known), is_last, end)
    html = _turns.get(key)
    if html is None:
        html = _turns[key] = turn_html(index, turn, notes, is_last=is_last, is_answering=False, end=end)
        if len(_turns) > MOST_TURNS:
            _turns.popitem(last=False)
    return html


def turn_html(index: int, turn: Any, notes: Any, *, is_last: bool, is_answering: bool, waiting: tuple[str, ...] = (), end: str = "") -> str:
    """One question with the answers of its sides; `waiting` are sides that have not said anything yet.

    `end` says who answers from here on, where it is somebody else.
    """
    sides = [side for side in ("base", "adapter") if side in turn.answers or side in waiting]
    answers = "".join(_answer(side, turn.answers.get(side, ""), notes, is_live=is_last and is_answering) for side in sides)
    if not answers:
        answers = '<p class="q-small">Not answered yet.</p>'
    pair = " q-answers-two" if len(sides) > 1 else ""
    reference = ""
    if notes.reference:
        reference = fold("The answer that this row has", f'<div class="q-said">{said_html(notes.reference)}</div>', f"reference-{index}")
    tools = _question_tools(notes.key, turn.question, is_last=is_last) if not is_answering else ""
    after = f'<p class="q-turn-end">{escape(end)}</p>' if end else ""
    return (
        f'<div class="q-question"><div class="q-bubble">{escape(turn.question)}</div>{tools}</div>'
        f'<div class="q-answers{pair}">{answers}</div>{reference}{after}'
    )


def _question_tools(key: str, question: str, *, is_last: bool) -> str:
    ask = (
        "Change the question"
        if is_last
        else "Change the question. What was said after it goes; all of it as it is now is kept in the trash."
    )
    edit = act_button("Edit", "edit", look="link", of=key, ask=ask, value=question, long="1", yes="Ask again")
    more = act_button("Try again", "retry", look="link", of=key) + act_button("Take back", "undo", look="link", of=key) if is_last else ""
    return f'<div class="q-turn-tools">{more}{edit}</div>'


def _answer(side: str, text: str, notes: Any, *, is_live: bool) -> str:
    known = notes.answers.get(side)
    is_done = not is_live or bool(known and known.stopped_by)
    body = said_html(text) if text else "" if is_done else TYPING
    if is_done and not text.strip():
        words = "You stopped it before its first word." if known and known.stopped_by == "stop" else "It said nothing."
        body = f'<span class="q-small">{words}</span>'
    tools = _answer_tools(notes.key, side, text, known) if is_done and text.strip() else ""
    return (
        f'<article class="q-answer q-answer-{side}" aria-label="{SIDE_WORDS[side]}"><h3 class="q-answer-head">{SIDE_WORDS[side]}</h3>'
        f'<div class="q-said">{body}</div>'
        f'<div class="q-answer-foot"><span class="q-small q-num">{escape(_numbers(known))}</span>{tools}</div></article>'
    )


def _numbers(known: Any) -> str:
    if known is None or not known.num_tokens:
        return ""
    parts = [f"{known.num_tokens:,} tokens"]
    if known.tokens_per_s:
        parts.append(f"{known.tokens_per_s:.3g} tokens/s")
    if known.first_token_s:
        parts.append(f"first after {known.first_token_s:.2g} s")
    if known.stopped_by in STOPPED_WORDS:
        parts.append(STOPPED_WORDS[known.stopped_by])
    return " · ".join(parts)


def _answer_tools(key: str, side: str, text: str, known: Any) -> str:
    if known is not None and known.is_kept:
        return '<span class="q-small q-kept">✓ kept as a row</span>'
    place = {"of": key, "side": side}
    good = act_button("Good: keep as a row", "keep", look="link", **place)
    better = act_button(
        "Correct it", "correct", look="link", ask="The answer as it should be", value=text, long="1", yes="Keep as a row", **place
    )
    return f'<span class="q-answer-tools">{good}{better}</span>'


def said_html(text: str) -> str:
    """A model's text: escaped, its line ends kept, fenced code verbatim in a box, `code` and **bold** set apart."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts.append(_prose(text[end : fence.start()]))
        indent, _, language, code = fence.groups()
        language = language.strip()
        code = re.sub(rf"^[ \t]{{1,{len(indent)}}}", "", code, flags=re.MULTILINE) if indent else code
        copy = f'<button type="button" class="q-link" data-copy="{escape(code)}">Copy</button>'
        parts.append(
            f'<figure class="q-fence"><figcaption>{escape(language)}{copy}</figcaption><pre><code>{escape(code)}</code></pre></figure>'
        )
        end = fence.end()
    parts.append(_prose(text[end:]))
    return "".join(parts)


def _prose(text: str) -> str:
    if not text.strip():
        return ""
    marked = _CODE.sub(r"<code>\2</code>", escape(text.strip("\n")))
    marked = _BOLD.sub(lambda found: found[1] or f"<strong>{found[2]}</strong>", marked)
    return f'<div class="q-prose">{marked}</div>'


def state_line(busy: str, doing: tuple[str, float | None]) -> str:
    """What is being done before the first token, in words."""
    if busy != "loading":
        return ""
    what, share = doing
    done = f" {format_percent(share)}" if share is not None else ""
    return f"{what}{done} …"


def context_line(context: tuple[int, int], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Tokens used of what the model reads, and what it may call."""
    used, most = context
    names = [str((tool.get("function") or tool).get("name") or "a tool") for tool in tools]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    parts = [f"{used:,} of {most:,} tokens of context used" if most else "", f"may call {', '.join(names[:3])}{more}" if names else ""]
    return " · ".join(filter(None, parts))
