"""A piece of background work on the page: what it does, how far, Cancel; and how it failed."""

from __future__ import annotations

import time

from qlora_ui.base.units import format_duration, format_percent
from qlora_ui.runs.listing import RunRow
from qlora_ui.ui.action import act_button
from qlora_ui.ui.background import Progress
from qlora_ui.ui.handler import problems_html
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.words import ago

MOST_RUNS = 100
"""In a list of runs; older ones are found on the Runs tab."""


def progress_html(progress: Progress, title: str) -> str:
    """A bar with words, time left and Cancel; after a failure what went wrong; else nothing."""
    if progress.is_running:
        done = f"{progress.share * 100:.0f}%" if progress.share is not None else "30%"
        left = progress.seconds_left(time.time())
        parts = [progress.what]
        if progress.share is not None:
            parts.append(format_percent(progress.share))
        if left is not None:
            parts.append(f"about {format_duration(left)} left")
        stop = (
            '<span class="q-small">Cancelling …</span>' if progress.is_cancelling else act_button("Cancel", "cancel", echo="Cancelling …")
        )
        return (
            f'<section class="q-card q-work" role="status"><div class="q-run-top"><h2 class="q-h3">{escape(title)}</h2>{stop}</div>'
            f'<div class="q-progress"><i style="width:{done}"></i></div><p class="q-small q-num">{escape(" · ".join(parts))}</p></section>'
        )
    if progress.problems:
        return f'<div role="alert">{problems_html(progress.problems)}</div>'
    return ""


def run_picker(rows: list[RunRow], run_id: str, words: str) -> str:
    """A list of the runs that have an adapter or a checkpoint, with the one that is looked at chosen."""
    every = [row for row in rows if row.has_adapter or row.has_checkpoint]
    finished = every[:MOST_RUNS]
    if not any(row.id == run_id for row in finished):
        finished = [row for row in rows if row.id == run_id] + finished
    options = "".join(
        f'<option value="{escape(row.id)}"{" selected" if row.id == run_id else ""}>{escape(row.name)} · {ago(row.created)}</option>'
        for row in finished
    )
    older = ""
    if len(every) > MOST_RUNS:
        way = act_button("Older ones are on the Runs tab, under ⋯", "all-runs", look="link")
        older = f'<span class="q-small q-num">The newest {MOST_RUNS} of {len(every):,}. {way}</span>'
    picker = f'<label class="q-run-picker"><span>{escape(words)}</span><select data-change="look">{options}</select></label>'
    return f'<div class="q-run-pick">{picker}{older}</div>' if older else picker
