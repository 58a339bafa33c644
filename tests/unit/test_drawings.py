"""What several pages share of a drawing is theirs alone once they have it."""

from __future__ import annotations

import gradio as gr
from gradio.blocks import postprocess_update_dict

from qlora_ui.ui.page import Drawings


def test_a_page_that_is_answered_takes_nothing_from_the_next_one() -> None:
    drawings = Drawings(kept_s=60)
    box = gr.Textbox("")
    for _ in range(3):
        (update,) = drawings.of(0, (), lambda: [gr.update(value="drawn", visible=True)])
        assert update["value"] == "drawn"
        # What Gradio does with it on the way to the page.
        postprocess_update_dict(box, update, postprocess=True)
        assert "value" not in update or update["value"] == "drawn"
        update.clear()
