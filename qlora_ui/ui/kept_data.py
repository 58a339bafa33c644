"""The data files that are kept, and downloaded datasets: choosing one again, and deleting one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from qlora_ui.runs.kept_data import delete_downloaded, delete_kept, downloaded, kept_files
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.data_adders import Adds
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.views.data_report import kept_html

TakesOff = Callable[[dict[Any, Any], str], list[Any]]
"""The form's updates that take a dataset off the list of sources."""


def build_kept_data(page: Page, adds: Adds, takes_off: TakesOff, chosen: Callable[[Draft], list[dict[str, Any]]]) -> None:
    """Draw the list and wire it; what is chosen and deleted goes through `adds` and `takes_off`, `chosen` gives the list of sources."""
    with gr.Accordion("Kept files", open=False, elem_classes="q-fold", elem_id="q-kept") as fold:
        listed = live_html("", "q-kept-files")

    def draw(draft: Draft) -> tuple[Any, str]:
        files = sorted([*kept_files(page.service.workspace), *downloaded()], key=lambda file: -file.kept_at)
        return gr.update(label=f"Kept files · {len(files):,}" if files else "Kept files"), kept_html(files, chosen(draft))

    @handler
    def act(event: gr.EventData, data: dict[Any, Any]) -> list[Any]:
        action = Action.of(event)
        if action.name == "use-kept":
            return adds(data, [DataSource(id=action.id)])
        if action.name == "delete-kept":
            delete = delete_downloaded if action.id.startswith("hub:") else delete_kept
            delete(page.service.workspace, action.id, page.service.run_lists.all_rows("file"))
            return takes_off(data, action.id)
        return [gr.skip() for _ in page.form.outputs]

    def wire() -> None:
        quiet = QUIET | {"trigger_mode": "multiple"}
        event = listed.act(act, page.form.inputs, page.form.outputs, **quiet)
        page.refresh_after(event)

    page.on_form(draw, [fold, listed])
    page.when_complete(wire)
