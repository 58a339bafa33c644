"""The one clock of a page: each beat is a `tick`, which draws what changed."""

from __future__ import annotations

import gradio as gr

TICK_S = 1.0
OUT_OF_SIGHT_S = 15.0
"""Nobody sees a page in the background; it catches up at once when it is looked at."""


def make_pulse() -> gr.HTML:
    """Place it; listen with `pulse.tick(…)`. A gr.Timer would beat as fast on pages that nobody looks at."""
    return gr.HTML(
        "",
        js_on_load=f"mountPulse(element, trigger, {1000 * TICK_S:g}, {1000 * OUT_OF_SIGHT_S:g}); // raises 'tick'",
        elem_id="q-pulse",
        visible="hidden",
        apply_default_css=False,
    )
