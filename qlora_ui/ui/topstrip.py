"""The line on top of every tab: name, the current run, the memory, light or dark."""

from __future__ import annotations

import gradio as gr

from qlora_ui.ui.page import Page
from qlora_ui.ui.views import strip


def place() -> gr.HTML:
    """The strip, empty until the first tick."""
    return gr.HTML(strip.frame_html("", ""), elem_id="q-strip", apply_default_css=False)


def connect(page: Page, html: gr.HTML) -> None:
    """Keep the strip up to date."""

    def draw(run_id: str) -> str:
        view = page.service.view("")
        return strip.frame_html(strip.run_chip(view), strip.memory_text(page.service.gpus()))

    page.live(draw, [html])
