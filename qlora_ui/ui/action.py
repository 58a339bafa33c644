"""Buttons inside our own HTML. `live_html` listens to them (static/act.js), `act_button` writes one, `Action` says which was pressed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_ui.ui.markup import escape, whole_letters


@dataclass(frozen=True, slots=True)
class Action:
    """What was pressed: its word, the id it stands for, and text where a dialog asked for some. All of it comes from a page."""

    name: str
    id: str
    text: str
    is_on: bool
    """State of a check box."""
    data: Mapping[str, str]

    @classmethod
    def of(cls, event: gr.EventData) -> Action:
        """The action of an "act" event."""
        data = event._data if isinstance(event._data, dict) else {}
        texts = {str(key): whole_letters(str(value)) for key, value in data.items() if isinstance(value, str | int | float)}
        return cls(texts.get("act", ""), texts.get("id", ""), texts.get("text", ""), bool(data.get("on")), texts)


WHEN_TOLD = "q-when-told"
"""Class of what is not seen before `Page.live` makes it visible. It is on the page all the time, so that its script hears of it."""


def live_html(value: str, elem_id: str, *, visible: bool = True) -> Any:
    """A gr.HTML that shows what `Page.live` draws and whose buttons raise its event `act`.

    Listen with `component.act(handler, …, trigger_mode="multiple")`, a handler that takes a gr.EventData. Without it, what is pressed
    before the answer to the press before is lost, whichever button it was; where the last has to win, `concurrency_limit=1` too.
    """
    return gr.HTML(
        value,
        js_on_load=f"mountActions({json.dumps(elem_id)}, element, trigger, watch); // raises 'act'",
        elem_id=elem_id,
        elem_classes=[] if visible else [WHEN_TOLD],
        apply_default_css=False,
    )


def act_button(label: str, action: str, run_id: str = "", *, look: str = "", **data: str) -> str:
    """A button that raises `action` for an id.

    `look` is primary, danger, link, chip or empty; `data` are confirm, yes, ask, value, echo, show, danger, label (see act.js), and
    `title`, which becomes the accessible name.
    """
    css = {"link": "q-link", "chip": "q-chip", "quiet": "q-button q-button-quiet"}.get(
        look, f"q-button{f' q-button-{look}' if look else ''}"
    )
    title = data.pop("title", "")
    extra = f' aria-label="{escape(title)}" title="{escape(title)}"' if title else ""
    rest = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    target = f' data-id="{escape(run_id)}"' if run_id else ""
    return f'<button type="button" class="{css}" data-act="{escape(action)}"{target}{extra}{rest}>{escape(label)}</button>'
