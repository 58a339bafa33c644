"""The Ready card, from the settings on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft


def ready_html(draft: Draft | None) -> str:
    """The card's text; None while nothing is known yet."""
    if draft is None:
        return '<section class="q-card q-ready" aria-busy="true"><h2>Checking the settings</h2></section>'
    return f'<section class="q-card q-ready"><h2>{"Ready" if draft.is_ready else "Not ready"}</h2></section>'


def start_label(draft: Draft) -> str:
    """The words on the button: Start, or what it waits for."""
    return "Start" if draft.is_ready else "Not ready yet"
