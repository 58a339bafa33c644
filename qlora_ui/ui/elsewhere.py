"""The bar that says that another page has other settings by now, and takes them over."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.settings.run_config import option_by_path
from qlora_ui.ui.action import Action, act_button, live_html
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.kept_draft import OWN_WORDS
from qlora_ui.ui.page import Page
from qlora_ui.ui.undo import Change, change_html

TITLE = "Another page has other settings"
ABOUT = "Here nothing was changed, and Start starts what stands here. A page that is opened anew shows the settings that were changed last."


def build(page: Page) -> None:
    """Draw the bar where the caller stands; nothing of it is seen while there is nothing to say."""
    bar = live_html("", "q-elsewhere")
    page.on_form(elsewhere_html, [bar])

    def propose(data: dict[Any, Any], action: Action) -> Change | None:
        if action.name != "take-over":
            return None
        preset, config = page.service.kept_draft.last()
        values = {path: config.get(path) for path in option_by_path() if path not in OWN_WORDS}
        return Change("Settings of the other page", values, preset=preset)

    page.undo.offer(bar.act, propose)

    @handler
    def keep(event: gr.EventData, request: gr.Request) -> None:
        if Action.of(event).name == "keep-mine":
            page.service.kept_draft.insist(str(request.session_hash))

    page.refresh_after(bar.act(keep, None, None, trigger_mode="multiple", **QUIET))


def elsewhere_html(draft: Draft) -> str:
    """What differs there, old → new, with the two ways out; empty where nothing does."""
    if draft.elsewhere is None:
        return ""
    options = option_by_path()
    changes = [(options[path], draft.values.get(path), theirs) for path, theirs in draft.elsewhere.items()]
    buttons = act_button("Show them here", "take-over") + act_button("Keep these", "keep-mine")
    return f'<div class="q-elsewhere">{change_html(TITLE, changes, ABOUT)}<div class="q-elsewhere-buttons">{buttons}</div></div>'
