"""What the workspace takes of the disk, below the list of runs: looked at when it is asked for."""

from __future__ import annotations

import gradio as gr

from qlora_ui.base.files import disk_trouble, free_bytes
from qlora_ui.runs.deleted import trash_size
from qlora_ui.runs.storage import Storage, free_remade, measure
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.background import Background
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.storage import disk_sentence, storage_html


def build_storage(page: Page) -> None:
    """Draw it and wire it."""
    service, work = page.service, page.service.background("measurement")
    view = live_html("", "runs-storage")

    @handler
    def act(event: gr.EventData) -> None:
        action = Action.of(event)
        if action.name == "cancel":
            work.cancel()
        if action.name == "free-remade":
            free_remade(service.workspace)
        if action.name in ("measure-disk", "free-remade"):
            look(service, work)

    page.live(lambda run_id: drawn(service, work), [view])
    quiet = QUIET | {"trigger_mode": "multiple"}
    page.redraw_after(view.act(act, None, None, **quiet))
    run_actions.wire(page, view)


def look(service: Service, work: Background) -> None:
    """Look at the files, unless that is being done."""
    work.press("disk", lambda on_progress, is_cancelled: measure(service.workspace, on_progress, is_cancelled))


def drawn(service: Service, work: Background) -> str:
    """What was found; it is looked at anew where something was deleted since, here or elsewhere."""
    workspace = service.workspace
    storage: Storage | None = work.progress().result
    if storage is not None and trash_size(workspace) != (storage.num_deleted, storage.trash_bytes):
        look(service, work)
        storage = None
    names = {row.id: row.name for row in service.run_lists.rows()} if storage is not None else {}
    trouble = disk_trouble(workspace.runs)
    words = disk_sentence(trouble, str(workspace.root)) if trouble else ""
    return storage_html(free_bytes(workspace.root), storage, names, work.progress(), words)
