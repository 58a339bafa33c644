"""What the workspace takes of the disk, below the list of runs: looked at when it is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from qlora_ui.base.files import free_bytes
from qlora_ui.runs.registry import trash_size
from qlora_ui.runs.storage import Storage, free_remade, measure
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.handler import handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.views.storage import storage_html


def build_storage(page: Page) -> None:
    """Draw it and wire it."""
    work, workspace = page.service.background("measurement"), page.service.workspace
    view = live_html("", "runs-storage")

    def draw(run_id: str) -> str:
        progress, lists = work.progress(), page.service.run_lists
        storage: Storage | None = progress.result
        if storage is None:
            return storage_html(free_bytes(workspace.root), None, {}, progress)
        names = {row.id: row.name for row in lists.rows()}
        # What was deleted since is not counted where it was.
        runs = tuple(run for run in storage.runs if run.id in names or lists.num_unread)
        num_deleted, trash_bytes = trash_size(workspace)
        storage = replace(storage, runs=runs, num_deleted=num_deleted, trash_bytes=trash_bytes)
        return storage_html(free_bytes(workspace.root), storage, names, progress)

    @handler
    def act(event: gr.EventData) -> None:
        action = Action.of(event)
        if action.name == "cancel":
            work.cancel()
        if action.name == "free-remade":
            free_remade(workspace)
        if action.name in ("measure-disk", "free-remade"):
            work.press("disk", lambda on_progress, is_cancelled: measure(workspace, on_progress, is_cancelled))

    page.live(draw, [view])
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    page.redraw_after(view.act(act, None, None, **quiet))
    run_actions.wire(page, view)
