"""The Runs tab: every run of the workspace, and two to four of them side by side."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

import gradio as gr

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.listing import RunList, RunRow
from qlora_ui.runs.registry import find_run
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.chart import LOSS_COMPARED, chart_value, charts
from qlora_ui.ui.handler import handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.train import curves_of
from qlora_ui.ui.views.compare import comparison_html
from qlora_ui.ui.views.runs_table import MOST_PICKED, PAGE_ROWS, details_html, found, table_html

FRESH_S = 0.9
"""All pages share one look at the folder within this time."""
KEPT_CONFIGS = 500
LOG_BYTES = 30_000
STATES = (("Any state", ""), ("Running", "live"), ("Done", "done"), ("Stopped", "stopped"), ("Paused", "paused"), ("Failed", "failed"))

Choice = dict[str, Any]
START: Choice = {"page": 0, "picked": [], "details": "", "only_different": True}
"""What one page has chosen in the list."""


class Lists:
    """The rows and settings that all pages of the app share."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._list = RunList(service.workspace)
        self._lock = threading.Lock()
        self._rows: tuple[float, list[RunRow]] = (0.0, [])
        self._configs: OrderedDict[str, RunConfig | None] = OrderedDict()

    def rows(self) -> list[RunRow]:
        """All runs, newest first."""
        with self._lock:
            read_at, rows = self._rows
            if time.monotonic() - read_at > FRESH_S:
                rows = self._list.rows()
                self._rows = (time.monotonic(), rows)
            return rows

    def forget(self) -> None:
        """Look at the folder anew at the next call."""
        with self._lock:
            self._rows = (0.0, self._rows[1])

    def config(self, run_id: str) -> RunConfig | None:
        """The settings of a run, which never change; None where they cannot be read."""
        with self._lock:
            if run_id not in self._configs:
                try:
                    self._configs[run_id] = find_run(self._service.workspace, run_id).config()
                except QloraUiError:
                    self._configs[run_id] = None
                while len(self._configs) > KEPT_CONFIGS:
                    self._configs.popitem(last=False)
            return self._configs[run_id]


def build(page: Page) -> None:
    """Draw the tab."""
    lists = Lists(page.service)
    choice = gr.State(START)
    with gr.Column(elem_id="runs-view"):
        gr.HTML('<h1 class="q-h1">Runs</h1><p class="q-sub">Tick two to lay them side by side.</p>', apply_default_css=False)
        with gr.Row(elem_id="runs-tools"):
            query = gr.Textbox(
                "",
                label="Find",
                show_label=False,
                container=False,
                placeholder="Find by name, model, tag or note",
                elem_id="runs-find",
                elem_classes="q-text",
            )
            state = gr.Dropdown(
                list(STATES), value="", label="State", show_label=False, container=False, elem_id="runs-state", elem_classes="q-select"
            )
        compared = live_html("", "runs-compare", visible=False)
        plot = charts("runs-charts", (LOSS_COMPARED,), curves_of(page.service))
        details = live_html("", "runs-details", visible=False)
        table = live_html("", "runs-table")

    def draw(run_id: str, text: str, wanted: str, chosen: Choice) -> tuple[Any, ...]:
        return _draw(lists, page.service, text, wanted, chosen)

    page.live(draw, [table, compared, plot, details], [query, state, choice])

    @handler
    def choose(chosen: Choice, event: gr.EventData) -> Choice:
        lists.forget()
        return _chosen(chosen, Action.of(event))

    def to_first_page(chosen: Choice) -> Choice:
        return {**chosen, "page": 0}

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    for component in (table, compared, details):
        page.redraw_after(component.act(choose, [choice], [choice], **quiet))
        run_actions.wire(page, component)
    for field in (query, state):
        page.redraw_after(field.input(to_first_page, [choice], [choice], trigger_mode="always_last", **quiet))


def _draw(lists: Lists, service: Service, text: str, wanted: str, chosen: Choice) -> tuple[Any, ...]:
    every = lists.rows()
    by_id = {row.id: row for row in every}
    kept = found(every, text or "", wanted or "")
    number = min(int(chosen["page"]), max((len(kept) - 1) // PAGE_ROWS, 0))
    shown = kept[number * PAGE_ROWS : (number + 1) * PAGE_ROWS]
    picked = [run_id for run_id in chosen["picked"] if run_id in by_id]
    table = table_html(shown, {row.id: lists.config(row.id) for row in shown}, picked, page=number, num_found=len(kept), num_all=len(every))
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


def _chosen(chosen: Choice, action: Action) -> Choice:
    """The page's choice after a click; clicks that are none of its business leave it as it is."""
    match action.name:
        case "pick":
            others = [run_id for run_id in chosen["picked"] if run_id != action.id]
            return {**chosen, "picked": ([*others, action.id] if action.is_on else others)[-MOST_PICKED:]}
        case "page":
            return {**chosen, "page": max(int(action.data.get("to", "0")), 0)}
        case "details":
            return {**chosen, "details": action.id}
        case "only-different":
            return {**chosen, "only_different": action.is_on}
        case "clear":
            return {**chosen, "picked": []}
    return chosen


def _end_of_log(service: Service, run_id: str) -> str:
    try:
        path = find_run(service.workspace, run_id).log_path
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_BYTES, 0))
            return file.read().decode("utf-8", errors="replace")
    except (QloraUiError, OSError):
        return ""
