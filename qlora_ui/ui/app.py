"""The page: top strip, tabs in the order of the work, Ready card."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from qlora_ui.ui import elsewhere, heads, readycard, topstrip
from qlora_ui.ui.blocks import Blocks
from qlora_ui.ui.form import Form
from qlora_ui.ui.page import Page
from qlora_ui.ui.pulse import make_pulse
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs import chat, data, evaluate, export, model, recipe, runs, train
from qlora_ui.ui.undo import Undo

TITLE = "QLoRA UI"
TABS: tuple[tuple[str, str, Callable[[Page], None]], ...] = (
    ("model", "Model", model.build),
    ("data", "Data", data.build),
    ("recipe", "Recipe", recipe.build),
    ("train", "Train", train.build),
    ("chat", "Chat", chat.build),
    ("evaluate", "Evaluate", evaluate.build),
    ("export", "Export", export.build),
    ("runs", "Runs", runs.build),
)
"""Id, words and builder of each tab. The DOM id of a tab's panel is `tab-ID`, of its button `tab-ID-button`."""


def build(service: Service) -> Blocks:
    """The whole page over a service."""
    blocks = Blocks(title=TITLE, fill_width=True, delete_cache=(3600, 86400), analytics_enabled=False)
    with blocks:
        run_id = gr.State("")
        pulse = make_pulse()
        strip = topstrip.place()
        with gr.Row(elem_id="q-main"):
            with gr.Column(elem_id="q-work", scale=1, min_width=0):
                undo_place = gr.Column(elem_id="q-undo-place", min_width=0)
                tabs = gr.Tabs(elem_id="q-tabs", selected="model", overflow_behavior="wrap")
                form = Form((*readycard.OPTIONS, *recipe.ELSEWHERE), initial=service.kept_draft.last()[1])
                page = Page(service, form, run_id, tabs, pulse)
                with undo_place:
                    page.undo = Undo(page)
                with tabs:
                    for name, words, build_tab in TABS:
                        side = "right" if name == "runs" else "left"
                        with gr.Tab(words, id=name, elem_id=f"tab-{name}", alignment=side):
                            build_tab(page)
                with undo_place:
                    elsewhere.build(page)
            with gr.Column(elem_id="q-side", min_width=0):
                readycard.build(page)
        topstrip.connect(page, strip)
        heads.connect(page)
        page.on_load(lambda: _restore(page), page.form.outputs)
        page.connect(blocks)
    blocks.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    return blocks


def _restore(page: Page) -> list[object]:
    """Put the settings of the last visit, or the demo's on the first one, into the controls."""
    _, config = page.service.kept_draft.last()
    return page.form.show(config)
