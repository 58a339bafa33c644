"""The quality receipt as a person reads it: the verdict, where each form stands, what the answers look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ui.base.units import format_duration
from qlora_ui.catalog.metrics import METRICS, MOST_ROWS, words_of
from qlora_ui.runs.read import RunView
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.dotplot import dotplot_html
from qlora_ui.ui.views.words import ago, fold

_METRICS = {metric.name: metric for metric in METRICS}
_HEADLINES = {
    "better": "Better: your adapter has learned what holds for rows it has never seen",
    "worse": "Worse than the base on rows it has never seen",
    "same": "No different from the base on rows it has never seen",
    "unsure": "Not clear yet",
}
_SHOWN = 16
"""Examples that are open to see."""
NOTHING = (
    '<div class="q-empty q-no-run"><h2>Nothing to evaluate yet</h2><p>Once a run with held-back rows is done, paused or stopped, you see '
    "here whether its adapter helps, what 4-bit cost, and in which form to keep it.</p></div>"
)
ABOUT = (
    "The rows that training never saw are scored on the base in full and in 4-bit, with your adapter, and merged in two ways; "
    "base and adapter answer some of them."
)


def source_words(view: RunView) -> str:
    """What of a run without a finished adapter is judged; empty where it has one."""
    if view.has_adapter:
        return ""
    step = (view.run.stand_in or "").removeprefix("checkpoint-")
    return f"The run has no finished adapter. What is judged is what it had learned at step {int(step or 0):,}, its last checkpoint."


def ended_words(begun: float, *, has_earlier: bool) -> str:
    """What became of an evaluation that was begun then and ended with the app; `has_earlier` where another one's result is shown."""
    words = f"The evaluation that was begun {ago(begun)} ended with the app before it was done. The next one begins from the start."
    return f"{words} What stands below is of an earlier one." if has_earlier else words


def invitation_html(run_id: str, num_eval_rows: int | None, *, is_training: bool = False) -> str:
    """What an evaluation will do, and its button; in words why there is none where no rows were held back, or while it trains."""
    if num_eval_rows == 0:
        return (
            '<div class="q-empty"><h2>No rows were held back</h2><p>Rows that were trained on say nothing about new ones. '
            "Set “Held back for checking” above 0 for the next run.</p></div>"
        )
    if is_training:
        return (
            '<div class="q-empty"><h2>The run is training</h2><p>Its held-back rows can be scored when it is done, paused or stopped: '
            "there is room for one model at a time.</p></div>"
        )
    rows = f"{_held_back(min(num_eval_rows, MOST_ROWS), num_eval_rows)}. " if num_eval_rows else ""
    button = act_button("Evaluate", "evaluate-now", run_id, look="primary", echo="Starting …")
    return f'<section class="q-card q-run-top"><p class="q-sub">{escape(rows + ABOUT)}</p>{button}</section>'


def receipt_html(
    result: Mapping[str, Any], run_id: str, adapter_sha256: str = "", *, is_finished: bool = True, is_busy: bool = False
) -> str:
    """All of a finished evaluation; `adapter_sha256` is of the run's adapter as it is now, empty where it is not known.

    Where the run is not finished that is the adapter of its newest checkpoint. While another evaluation `is_busy` none can be begun.
    """
    again = "" if is_busy else act_button("Evaluate again", "evaluate-now", run_id, look="quiet", echo="Starting …")
    verdict = result.get("verdict") or {}
    kind = {"better": "good", "worse": "bad"}.get(str(verdict.get("kind")), "warn")
    sign = {"good": "✓", "bad": "✕", "warn": "?"}[kind]
    num_rows = int(result.get("num_rows", 0))
    rows = _held_back(num_rows, int(result.get("num_held_back", num_rows)))
    facts = f"{rows}, {result.get('num_tokens', 0):,} learned tokens, {result.get('device', '')}"
    when = f"{ago(float(result.get('time', 0)))}, took {format_duration(float(result.get('duration_s', 0)))}"
    return (
        f'<section class="q-receipt q-receipt-{kind}"><span class="q-receipt-sign" aria-hidden="true">{sign}</span>'
        f'<div><h2 class="q-h2">{escape(_HEADLINES.get(str(verdict.get("kind")), ""))}</h2>'
        f'<p class="q-receipt-text">{escape(verdict.get("text", ""))}</p>'
        f'<p class="q-small q-num">{escape(facts)} · {escape(when)}</p>{_notes(result, adapter_sha256, is_finished)}'
        f"{_next_steps(str(verdict.get('kind')), run_id)}</div>"
        f"{again}</section>"
        f"{_dots(result)}{_tasks(result)}{_answers(result.get('answers') or [])}"
    )


def _next_steps(kind: str, run_id: str) -> str:
    """Where to go from the verdict."""
    again = act_button("Change the settings and train again", "copy", run_id, look="link")
    chat = act_button("Chat with it", "chat", run_id, look="link")
    take = act_button("Take it with you", "export", run_id, look="link")
    steps = (again, chat) if kind in ("worse", "same") else (take, chat) if kind == "better" else (chat, again)
    return f'<p class="q-receipt-next">{" ".join(steps)}</p>'


def _notes(result: Mapping[str, Any], adapter_sha256: str, is_finished: bool) -> str:
    """What to know where the numbers are not of the run's adapter as it is now, or not on the base that it was trained on."""
    words = [str(result.get("warning") or ""), _other_adapter(result, adapter_sha256, is_finished)]
    return "".join(f'<p class="q-note q-note-warn q-small">{escape(one)}</p>' for one in words if one)


def _other_adapter(result: Mapping[str, Any], adapter_sha256: str, is_finished: bool) -> str:
    measured = result.get("adapter_sha256") or adapter_sha256
    is_other = measured != adapter_sha256 or not adapter_sha256
    step = str(result.get("checkpoint") or "").removeprefix("checkpoint-")
    if step and is_finished:
        return f"These are the numbers of step {step}, not of the finished adapter." if is_other else ""
    if step:
        return f"The run has learned on since: these are the numbers of step {step}." if is_other else ""
    return "The run has learned on since: these are the numbers of its adapter as it was." if adapter_sha256 and is_other else ""


def _held_back(num_rows: int, num_in_all: int) -> str:
    """`6 held-back rows`, `200 of 1,000 held-back rows`."""
    of = f" of {num_in_all:,}" if num_in_all > num_rows else ""
    return f"{num_rows:,}{of} held-back row{'' if num_rows == num_in_all == 1 else 's'}"


def _dots(result: Mapping[str, Any]) -> str:
    plot = dotplot_html(result)
    if not plot:
        return ""
    has_whiskers = any((result.get(key) or {}).get("low") is not None for key in ("gain", "four_bit_cost"))
    note = "Whiskers: 95 % interval of the difference to the base in 4-bit." if has_whiskers else ""
    # transformers' Trainer has the mean of its batches' losses, whatever number of words a batch has.
    curve = "Here each word counts the same; Train and Runs show a mean of batches, so their number for these rows is a little different."
    return (
        '<section class="q-card"><h2 class="q-h2">Loss on rows it has never seen</h2>'
        '<p class="q-small">How surprised each form is by the words of the rows; lower is better. The loss is in nats a token (a word or '
        f"a piece of one): 0.69 less makes the right word twice as likely. {note}</p>{plot}"
        f'<p class="q-small">{curve}</p>'
        f"{fold('All numbers', _numbers(result), 'all-numbers')}</section>"
    )


def _numbers(result: Mapping[str, Any]) -> str:
    """Every figure of every form, and how near each comes to the model that the chat answers with."""
    agreement = (result.get("agreement") or {}).get("adapter-4bit") or {}
    differences = result.get("logit_difference") or {}
    rows = []
    for row in result.get("scores") or []:
        if "loss" not in row:
            continue
        same = f"{agreement[row['variant']]:.1%}" if row["variant"] in agreement else "–"
        difference = differences.get(row["variant"])
        logits = f"{_small(difference['mean'])}, at most {_small(difference['max'])}" if difference else "–"
        about = f"{row.get('about', '')}{' Too large for the memory: read layer by layer.' if row.get('by_layer') else ''}"
        rows.append(
            f'<tr><th scope="row">{escape(row["title"])}</th><td>{row["loss"]:.4f}</td><td>{row["perplexity"]:.2f}</td>'
            f"<td>{row['accuracy']:.1%}</td><td>{same}</td><td>{logits}</td><td>{escape(about)}</td></tr>"
        )
    names = ("Form", "Loss", "Perplexity", "Token accuracy", "Same choice as the chat", "Logits differ from the chat’s by", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="q-scroll"><table class="q-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _small(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _tasks(result: Mapping[str, Any]) -> str:
    tasks: Sequence[Mapping[str, Any]] = result.get("tasks") or []
    if not tasks:
        return ""
    answers = result.get("answers") or []
    measured = sum(answer.get("is_measured", True) for answer in answers)
    note = f"{measured} held-back question{'' if measured == 1 else 's'}; in small the 95 % interval, where they are enough for one."
    if measured < len(answers):
        note += f" {len(answers) - measured} more have answers too long to be written out here."
    rows = "".join(
        f'<tr><th scope="row">{_metric(str(task["metric"]))}</th><td>{_share(task["base"])}</td><td>{_share(task["adapter"])}</td></tr>'
        for task in tasks
        if "base" in task and "adapter" in task
    )
    head = "<thead><tr><th>Measure</th><th>Base model</th><th>With your adapter</th></tr></thead>"
    return (
        '<section class="q-card"><h2 class="q-h2">The answers, measured</h2>'
        f'<p class="q-small">{note}</p><table class="q-table">{head}<tbody>{rows}</tbody></table></section>'
    )


def _metric(name: str) -> str:
    """A measure's name with what it says in small."""
    known = _METRICS.get(name)
    if known is None:
        return escape(name)
    term = f" <small>{escape(known.term)}</small>" if known.term else ""
    return f"{escape(known.title)}{term}<br><small>{escape(known.help)}</small>"


def _share(measured: Mapping[str, Any]) -> str:
    """A measure of answers in percent, with its interval where it has one: label F1 is a number of all answers together."""
    low, high = measured.get("low"), measured.get("high")
    interval = f" <small>({100 * low:.0f} to {100 * high:.0f} %)</small>" if low is not None and high is not None else ""
    return f"{100 * measured['value']:.0f} %{interval}"


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    """Examples, those that lie farthest from their reference first."""
    if not answers:
        return ""
    ordered = sorted(answers, key=lambda answer: _likeness(answer["adapter"], answer["reference"]))
    cards = [
        f'<li><p class="q-h3 q-asked">{escape(answer["question"])}</p><div class="q-answers q-answers-three">'
        f"{_said('The row’s answer', answer['reference'], 'reference')}{_said('Base model', _text(answer, 'base'), 'base')}"
        f"{_said('With your adapter', _text(answer, 'adapter'), 'adapter')}</div></li>"
        for answer in ordered
    ]
    shown, others = (f'<ol class="q-examples">{"".join(part)}</ol>' for part in (cards[:_SHOWN], cards[_SHOWN:]))
    rest = fold(f"{len(cards) - _SHOWN} more", others, "more-examples") if cards[_SHOWN:] else ""
    return f'<section class="q-card"><h2 class="q-h2">Examples, the weakest first</h2>{shown}{rest}</section>'


def _text(answer: Mapping[str, Any], side: str) -> str:
    """A side's answer, with a mark where it was cut."""
    return f"{answer[side]} … (cut)" if side in answer.get("cut", ()) else str(answer[side])


def _said(title: str, text: str, side: str) -> str:
    body = f'<div class="q-prose">{escape(text.strip() or "(nothing)")}</div>'
    return f'<article class="q-answer q-answer-{side}"><h3 class="q-answer-head">{title}</h3>{body}</article>'


def _likeness(text: str, reference: str) -> float:
    """Share of the reference's words that the text has: enough to put the weakest on top."""
    wanted = set(words_of(reference))
    return len(wanted & set(words_of(text))) / len(wanted) if wanted else 1.0
