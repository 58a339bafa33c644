"""The Ready card: what Start would do, what is missing, what it would wait for, and Start."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import gradio as gr

from qlora_ui.hardware.cards import KNOWN_CARDS
from qlora_ui.runs.listing import RunRow
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.settings.option import Option
from qlora_ui.ui.action import live_html
from qlora_ui.ui.controls import make_text
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.views.checked import check_label, checked_html, has_check, wants_check
from qlora_ui.ui.views.ready import ready_html, start_label, trained_html, waits_html

OPTIONS = ("output.name",)
"""Options that stand in the card."""
MOST_LETTERS = 80
"""Of a name (runs/listing.py)."""


def build(page: Page) -> None:
    """Draw the card in the right column."""
    card = gr.HTML(ready_html(None), elem_id="q-ready", apply_default_css=False)
    _check(page)
    with gr.Column(elem_classes="q-ready-more", min_width=0):
        # On a low screen the card scrolls: what belongs to the run comes before what only asks.
        page.form.place("output.name", maker=_name_box, min_width=0)
        page.device = _device_picker(page)
    waits = live_html("", "q-ready-waits")
    start = gr.Button("Start", variant="primary", elem_id="q-start", elem_classes="q-start", interactive=False)

    def draw(draft: Draft) -> tuple[str, Any]:
        return ready_html(draft, page.service.kept_draft.lost), gr.update(value=start_label(draft), interactive=draft.is_ready)

    page.on_form(draw, [card, start])

    def wait(run_id: str) -> str:
        service = page.service
        holder = next((holder for holder in service.card.holders() if holder.who in ("evaluation", "export")), None)
        words = waits_html(service.view(""), is_held=service.launcher.is_held, holder=holder)
        return words + trained_html(service.view(run_id))

    page.live(wait, [waits])

    @handler
    def begin(data: dict[Any, Any]) -> tuple[str, Any]:
        # The launcher takes presses with equal settings for one, also those of another page.
        run = page.service.launcher.start(page.form.read(data))
        name_apart(run, page.service.run_lists.rows())
        page.service.kept_draft.lost = ""
        return run.id, gr.Tabs(selected="train")

    # The card is built last, so every control of the form is there.
    started = start.click(begin, page.form.inputs, [page.run_id, page.tabs], api_visibility="private")
    page.redraw_after(started)


def name_apart(run: RunDir, rows: Sequence[RunRow]) -> None:
    """Give a run that was just made a number where another has its name: what was typed stays in the box for the next press of Start."""
    others = {row.name for row in rows if row.id != run.id}
    name = run.name(run.config())
    if name in others:
        stem = name[: MOST_LETTERS - 5].rstrip()
        run.write_about(name=next(free for free in (f"{stem} {number}" for number in count(2)) if free not in others))


def _check(page: Page) -> None:
    """The precise check of the memory: a button that begins it, and skips it while it runs."""
    line = gr.HTML("", elem_id="q-ready-check", apply_default_css=False)
    button = gr.Button(check_label(None), elem_id="q-check", elem_classes="q-tool", visible=False)
    checks = page.service.checks

    def draw(draft: Draft) -> tuple[str, Any]:
        # By itself only for a card that is here: elsewhere it would keep a processor busy that may be training.
        is_wanted = wants_check(draft) and draft.is_ready and draft.device.is_present
        pending = checks.of(draft, is_wanted=is_wanted)
        return checked_html(draft, pending), gr.update(value=check_label(pending), visible=has_check(draft))

    @handler
    def press(data: dict[Any, Any]) -> None:
        preset, device = (str(data.get(picker) or "") for picker in (page.preset, page.device))
        draft = page.service.draft(page.form.values(data), preset=preset, device=device)
        pending = checks.of(draft)
        if pending is not None and not pending.is_done:
            checks.skip(draft)
        else:
            checks.begin(draft)

    def wire() -> None:
        pressed = button.click(press, page.form.inputs | page.pickers, None, **QUIET)
        page.refresh_after(pressed)

    page.on_form(draw, [line, button])
    page.when_complete(wire)


def _name_box(option: Option) -> gr.components.Component:
    """The run's name, saying in the empty box what happens without one."""
    box = make_text(option)
    box.placeholder = "made from model and date"
    return box


def _device_picker(page: Page) -> gr.Dropdown:
    """On a machine without a card: for which one the numbers are."""
    has_card = bool(page.service.gpus())
    cards = sorted(KNOWN_CARDS, key=lambda card: (card.total_mib, card.name))
    return gr.Dropdown(
        [("This computer", ""), *((card.label, card.name) for card in cards)],
        value="",
        label="Predict for",
        info="See how this run would do on a graphics card.",
        elem_id="q-device",
        elem_classes="q-select q-labelled",
        filterable=True,
        visible=not has_card,
    )
