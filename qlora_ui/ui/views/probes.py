"""The probe strip: the user's questions down, the steps across, so that anybody sees it learn."""

from __future__ import annotations

from qlora_ui.runs.read import RunView
from qlora_ui.ui.markup import escape

MOST_COLUMNS = 8


def probes_html(view: RunView | None) -> str:
    """A table of prompt × step; the first, the last and evenly chosen columns between. Empty where nothing was asked."""
    if view is None or not view.probes:
        return ""
    prompts = list(dict.fromkeys(event.prompt for event in view.probes))
    steps = _chosen(sorted({event.step for event in view.probes}))
    answers = {(event.prompt, event.step): event.answer for event in view.probes}
    head = "".join(_head(step, is_last=step == steps[-1]) for step in steps)
    rows = []
    for prompt in prompts:
        cells = "".join(_cell(answers.get((prompt, step)), is_last=step == steps[-1]) for step in steps)
        rows.append(f'<tr><th scope="row">{escape(prompt)}</th>{cells}</tr>')
    return (
        '<section class="q-card q-probes"><h2 class="q-h2">The same questions, again and again</h2>'
        '<div class="q-probes-scroll" tabindex="0" role="region" aria-label="Answers to the probe questions">'
        f'<table><thead><tr><th scope="col">Question</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _head(step: int, *, is_last: bool) -> str:
    words = "Before training" if step == 0 else f"Step {step:,}"
    return f'<th scope="col" class="q-num{" q-probe-last" if is_last else ""}">{words}</th>'


def _cell(answer: str | None, *, is_last: bool) -> str:
    if answer is None:
        return '<td class="q-probe-none">–</td>'
    text = answer.strip() or "(nothing)"
    return f'<td{" class=q-probe-last" if is_last else ""}><div class="q-probe" tabindex="-1">{escape(text)}</div></td>'


def _chosen(steps: list[int]) -> list[int]:
    if len(steps) <= MOST_COLUMNS:
        return steps
    places = {round(place * (len(steps) - 1) / (MOST_COLUMNS - 1)) for place in range(MOST_COLUMNS)}
    return [steps[place] for place in sorted(places)]
