"""The Train tab: the run that is looked at, live, the same on every page and after every reload."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.runs.read import RunView
from qlora_ui.runs.under_way import exports_ended_early
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import live_html
from qlora_ui.ui.chart import GRADIENT, LEARNING_RATE, LOSS, MEMORY, SPEED, chart_value, charts
from qlora_ui.ui.curves import Curves
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.exports import ended_words
from qlora_ui.ui.views.probes import probes_html
from qlora_ui.ui.views.run import LOOKING, head_html
from qlora_ui.ui.views.timeline import timeline_html
from qlora_ui.ui.views.train_tiles import tiles_html

PANELS = (LOSS, MEMORY, LEARNING_RATE, GRADIENT, SPEED)


def build(page: Page) -> None:
    """Draw the tab."""
    service = page.service
    curves = Curves(service)
    with gr.Column(elem_id="train-view"):
        head = live_html(LOOKING, "train-head")
        tiles = live_html("", "train-tiles", visible=False)
        plots = charts("train-charts", PANELS, curves.ask)
        probes = live_html("", "train-probes", visible=False)
        timeline = live_html("", "train-timeline", visible=False)

    def draw(run_id: str) -> tuple[Any, ...]:
        view = service.view(run_id)
        begun = view is not None and view.started is not None
        return (
            _head(service, view),
            gr.update(value=tiles_html(view, service.gpus()), visible=begun),
            gr.update(value=_drawn(curves, view), visible=begun),
            gr.update(value=probes_html(view), visible=bool(view and view.probes)),
            gr.update(value=timeline_html(view), visible=begun),
        )

    page.live(draw, [head, tiles, plots, probes, timeline])
    page.answer_quickly(plots, "curves", curves.ask_quickly)
    run_actions.wire(page, head)


def _drawn(curves: Curves, view: RunView | None) -> Any:
    if view is None:
        return chart_value([], "")
    tail = curves.tail(view)
    return chart_value([view.id], view.version, tails=[tail] if tail else [])


def _head(service: Service, view: RunView | None) -> str:
    launcher = service.launcher
    waiting = [service.readers.view(run) for run in launcher.queue()]
    current = launcher.current()
    elsewhere = service.readers.view(current) if current is not None and view is not None and current.id != view.id else None
    holder = launcher.waiting_for() if waiting else None
    cut_short = ended_words(exports_ended_early(view.run)) if view is not None else ""
    return head_html(view, waiting, is_held=launcher.is_held, blocked_by=holder, elsewhere=elsewhere, cut_short=cut_short)
