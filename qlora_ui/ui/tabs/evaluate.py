"""The Evaluate tab: is it better, what did 4-bit cost, in which form to keep it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.base.files import read_json
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.under_way import ended_early, marked
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.background import Progress
from qlora_ui.ui.chosen import run_to_take
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.markup import escape, middle_cut
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs import comparison
from qlora_ui.ui.views.background_view import progress_html, run_picker
from qlora_ui.ui.views.evaluation import NOTHING, ended_words, invitation_html, receipt_html, source_words
from qlora_ui.ui.views.run import LOOKING


def build(page: Page) -> None:
    """Draw the tab."""
    work = page.service.background("evaluation")
    view = live_html(LOOKING, "evaluate-view")
    page.live(lambda run_id: _draw(page.service, run_id, work.progress()), [view])

    @handler
    def act(event: gr.EventData) -> None:
        action = Action.of(event)
        if action.name == "cancel":
            work.cancel()
        if action.name == "evaluate-now":
            run = find_run(page.service.workspace, action.id)

            def job(on_progress: Any, is_cancelled: Any) -> Any:
                on_progress("Starting the engine", None)
                evaluate = engine_object("evaluate:evaluate_run")
                with marked(run.evaluating_path, lambda: work.is_closed):
                    return evaluate(run.id, page.service.workspace, page.service.card, on_progress=on_progress, is_cancelled=is_cancelled)

            work.press(run.id, job)

    page.redraw_after(view.act(act, None, None, trigger_mode="multiple", **QUIET))
    run_actions.wire(page, view)
    comparison.build(page)


def _draw(service: Service, run_id: str, progress: Progress) -> str:
    view = run_to_take(service, run_id)
    if view is None:
        return NOTHING
    rows = service.run_lists.rows()
    picker = run_picker(rows, view.id, "Evaluate")
    other = next((row.name for row in rows if row.id == progress.key), "another run")
    title = "Evaluating" if progress.key == view.id else f"Evaluating {middle_cut(other, 60)}"
    shown = progress.is_running or progress.key == view.id
    result = read_json(view.run.evaluation_path)
    running = progress_html(progress, title) if shown else ""
    body = ""
    if isinstance(result, dict):
        body = receipt_html(result, view.id, view.run.adapter_sha256, is_finished=view.has_adapter, is_busy=progress.is_running)
    elif not progress.is_running:
        body = invitation_html(view.id, view.planned.num_eval_rows if view.planned else None, is_training=view.status.is_live)
    # Of a run that trains nothing is judged now.
    source = source_words(view) if isinstance(result, dict) or not view.status.is_live else ""
    told = f'<p class="q-note" id="evaluate-source">{escape(source)}</p>' if source else ""
    begun = None if progress.is_running else ended_early(view.run.evaluating_path, view.run.evaluation_path)
    told += (
        f'<p class="q-note q-note-warn" id="evaluate-ended">{escape(ended_words(begun, has_earlier=isinstance(result, dict)))}</p>'
        if begun is not None
        else ""
    )
    return f'<div class="q-results"><h1 class="q-h1">Is it better?</h1>{picker}{told}{running}{body}</div>'
