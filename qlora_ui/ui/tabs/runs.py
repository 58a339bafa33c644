"""The Runs tab: every run of the workspace, and two to four of them side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.kept_models import runs_on_exports
from qlora_ui.runs.listing import RunRow
from qlora_ui.runs.registry import find_run
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.chart import LOSS_COMPARED, chart_value, charts
from qlora_ui.ui.curves import Curves
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.run_lists import RunLists
from qlora_ui.ui.service import Service
from qlora_ui.ui.storage import build_storage
from qlora_ui.ui.trash import build_trash
from qlora_ui.ui.views.compare import comparison_html
from qlora_ui.ui.views.kept_model import useless_without
from qlora_ui.ui.views.runs_table import MOST_PICKED, PAGE_ROWS, details_html, found, reading_html, table_html

LOG_BYTES = 30_000
STATES = (("Any state", ""), ("Running", "live"), ("Done", "done"), ("Stopped", "stopped"), ("Paused", "paused"), ("Failed", "failed"))

Choice = dict[str, Any]
START: Choice = {"page": 0, "picked": [], "details": "", "only_different": True}
"""What one page has chosen in the list."""


def build(page: Page) -> None:
    """Draw the tab."""
    lists = page.service.run_lists
    choice = gr.State(START)
    curves = Curves(page.service)
    with gr.Column(elem_id="runs-view"):
        gr.HTML('<h1 class="q-h1">Runs</h1><p class="q-sub">Tick two to lay them side by side.</p>', apply_default_css=False)
        with gr.Row(elem_id="runs-tools"):
            query = gr.Textbox(
                "",
                label="Find",
                max_lines=1,
                show_label=False,
                container=False,
                placeholder="Find by name, model, tag or note",
                elem_id="runs-find",
                elem_classes="q-text",
            )
            state = gr.Dropdown(
                list(STATES), value="", label="State", show_label=False, container=False, elem_id="runs-state", elem_classes="q-select"
            )
        # What a press brings stands below the list: above it the list would move away under the pointer.
        table = live_html("", "runs-table")
        compared = live_html("", "runs-compare", visible=False)
        plot = charts("runs-charts", (LOSS_COMPARED,), curves.ask)
        details = live_html("", "runs-details", visible=False)
        build_trash(page)
        build_storage(page)

    def draw(run_id: str, text: str, wanted: str, chosen: Choice) -> tuple[Any, ...]:
        return _draw(lists, page.service, text, wanted, chosen)

    page.live(draw, [table, compared, plot, details], [query, state, choice])
    page.answer_quickly(plot, "curves", curves.ask_quickly)

    @handler
    def choose(chosen: Choice, event: gr.EventData) -> Choice:
        lists.forget()
        return _chosen(chosen, Action.of(event))

    def to_first_page(chosen: Choice) -> Choice:
        chosen["page"] = 0
        return chosen

    quiet = QUIET | {"queue": False}
    for component in (table, compared, details):
        page.redraw_after(component.act(choose, [choice], [choice], trigger_mode="multiple", **quiet))
        run_actions.wire(page, component)
    for field in (query, state):
        page.redraw_after(field.input(to_first_page, [choice], [choice], trigger_mode="always_last", **quiet))


def _draw(lists: RunLists, service: Service, text: str, wanted: str, chosen: Choice) -> tuple[Any, ...]:
    every = lists.rows()
    by_id = {row.id: row for row in every}
    kept = found(every, text or "", wanted or "")
    number = min(int(chosen["page"]), max((len(kept) - 1) // PAGE_ROWS, 0))
    shown = kept[number * PAGE_ROWS : (number + 1) * PAGE_ROWS]
    picked = [run_id for run_id in chosen["picked"] if run_id in by_id]
    table = reading_html(lists.num_unread) + table_html(
        shown,
        {row.id: lists.config(row.id) for row in shown},
        picked,
        page=number,
        num_found=len(kept),
        num_all=len(every),
        needed_by=_needed_by(service, every),
    )
    pair = [by_id[run_id] for run_id in picked]
    comparison = gr.update(value="", visible=False)
    if len(pair) > 1:
        html = comparison_html(pair, [lists.config(row.id) for row in pair], only_different=bool(chosen["only_different"]))
        comparison = gr.update(value=html, visible=True)
    version = ".".join(f"{row.id}:{row.step}" for row in pair)
    drawn = chart_value([row.id for row in pair], version, [row.name for row in pair])
    opened = by_id.get(str(chosen["details"]))
    details = gr.update(value="", visible=False)
    if opened is not None:
        details = gr.update(value=details_html(opened, lists.config(opened.id), _end_of_log(service, opened.id)), visible=True)
    return table, comparison, gr.update(value=drawn, visible=len(pair) > 1), details


def _needed_by(service: Service, every: list[RunRow]) -> dict[str, str]:
    """Of runs whose exports are the base of others, by id: which others, in a sentence."""
    needing: dict[str, list[RunRow]] = {}
    for (run_id, _), rows in runs_on_exports(service.workspace, every).items():
        needing.setdefault(run_id, []).extend(rows)
    return {run_id: useless_without(rows, "what was exported of it") for run_id, rows in needing.items()}


def _chosen(chosen: Choice, action: Action) -> Choice:
    """The page's choice after a click, in place; clicks that are none of its business leave it as it is.

    Two quick clicks begin with the same choice, and a copy of the second would take the first back.
    """
    match action.name:
        case "pick":
            others = [run_id for run_id in chosen["picked"] if run_id != action.id]
            chosen["picked"] = ([*others, action.id] if action.is_on else others)[-MOST_PICKED:]
        case "page":
            chosen["page"] = max(int(action.data.get("to", "0")), 0)
        case "details":
            chosen["details"] = action.id
        case "only-different":
            chosen["only_different"] = action.is_on
        case "clear":
            chosen["picked"] = []
    return chosen


def _end_of_log(service: Service, run_id: str) -> str:
    try:
        path = find_run(service.workspace, run_id).log_path
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_BYTES, 0))
            return file.read().decode("utf-8", errors="replace")
    except (QloraUiError, OSError):
        return ""
