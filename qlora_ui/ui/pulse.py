"""The one clock of a page: at each beat it asks what is new, and shows that (static/pulse.js)."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.base.errors import QloraUiError

BEAT_S = 1.0
OUT_OF_SIGHT_S = 15.0
"""Nobody sees a page in the background; it catches up at once when it is looked at."""


def news(asked: dict[str, Any]) -> None:
    """What a page asks for; ui/shortcut.py answers with `Page.news` before Gradio sees it, for a hundredth of the work."""
    raise QloraUiError(
        "The app did not understand what the page asked.", why="The page is older or newer than the app", fix="Reload it", code="stale-page"
    )


def make_pulse() -> gr.HTML:
    """Place it; listen with `pulse.found(…)`: the settings' views are to be drawn anew. A gr.Timer would beat as fast on pages that nobody
    looks at, and each of its beats is an event of Gradio."""
    return gr.HTML(
        "",
        js_on_load=f"mountPulse(element, trigger, server, {1000 * BEAT_S:g}, {1000 * OUT_OF_SIGHT_S:g}); // raises 'found'",
        server_functions=[news],
        elem_id="q-pulse",
        visible="hidden",
        apply_default_css=False,
    )
