"""The line on top of every tab: name, the current run, the memory, light or dark."""

from __future__ import annotations

from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import disk_trouble
from qlora_ui.hardware.system import read_system
from qlora_ui.ui.action import live_html
from qlora_ui.ui.page import Page
from qlora_ui.ui.views import strip


def place() -> Any:
    """The strip, empty until the first beat."""
    return live_html(strip.frame_html("", ""), "q-strip")


def connect(page: Page, html: Any) -> None:
    """Keep the strip up to date."""

    def draw(run_id: str) -> str:
        try:
            view = page.service.view("")
        except QloraUiError:  # the workspace is away, which the chip says
            view = None
        is_live = view is not None and view.status.is_live
        predicted = view.planned.predicted_bytes if is_live and view is not None and view.planned is not None else None
        gpus = page.service.gpus()
        memory = strip.card_memory(gpus[0], predicted) if gpus else strip.ram_memory(read_system(), predicted)
        workspace = page.service.workspace
        disk = strip.disk_chip(disk_trouble(workspace.runs), str(workspace.root))
        return strip.frame_html(strip.run_chip(view) + disk, memory)

    page.live(draw, [html])
