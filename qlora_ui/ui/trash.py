"""The trash, at the end of the Runs tab: everything that was deleted on any tab, and the way back."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.runs.deleted import Deleted, deleted, empty_trash, put_back
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.handler import QUIET, handler, toast_html
from qlora_ui.ui.markup import escape
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.recipe import preset_choices
from qlora_ui.ui.views.trash import IS_BACK, trash_html

INFO_S = 8


def _put_back(service: Service, folder: str) -> Deleted:
    found = next((one for one in deleted(service.workspace) if one.folder == folder and one.kind == "conversation"), None)
    if found is None:
        return put_back(service.workspace, folder)
    # The app has it in its hands while it is open.
    service.desk.put_back(service.workspace.trash / folder)
    return found


def build_trash(page: Page) -> None:
    """Draw it and wire it."""
    service = page.service
    workspace = service.workspace
    view = live_html("", "runs-trash")
    page.live(lambda run_id: trash_html(deleted(workspace), str(workspace.trash)), [view])

    @handler
    def act(event: gr.EventData) -> list[Any]:
        action = Action.of(event)
        if action.name == "empty_trash":
            empty_trash(workspace)
        if action.name != "put_back":
            return [gr.skip(), gr.skip()]
        found = _put_back(service, action.id)
        service.run_lists.forget()
        service.models_changed()
        gr.Info(toast_html(f"“{found.name}” is put back", f"<p>{escape(IS_BACK[found.kind])}</p>"), duration=INFO_S)
        # Gradio refuses every request of a page whose picker shows a preset that it does not know.
        presets = gr.update(choices=preset_choices(service.presets())) if found.kind == "preset" else gr.skip()
        return [found.run_id if found.kind == "run" else gr.skip(), presets]

    def wire() -> None:
        quiet = QUIET | {"trigger_mode": "multiple"}
        done = view.act(act, None, [page.run_id, page.preset], **quiet)
        page.redraw_after(done)
        # Models and data files are drawn with the settings.
        page.refresh_after(done)

    page.when_complete(wire)
