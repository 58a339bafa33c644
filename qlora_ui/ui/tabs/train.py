"""The Train tab."""

from __future__ import annotations

import gradio as gr

from qlora_ui.ui.page import Page


def build(page: Page) -> None:
    """Draw the tab."""
    gr.HTML('<div class="q-empty"><h2>Train</h2></div>', apply_default_css=False)
