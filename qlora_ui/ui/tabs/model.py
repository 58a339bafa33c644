"""The Model tab: what is fine-tuned."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.base.errors import ModelError
from qlora_ui.estimate.quantization import explain
from qlora_ui.models.catalogue import ModelEntry, is_hub_id, needs_download
from qlora_ui.models.facts import ModelFacts
from qlora_ui.models.hub import search
from qlora_ui.models.hub_cache import held_bytes
from qlora_ui.models.known import KNOWN_CONFIGS
from qlora_ui.runs.kept_models import delete_model, kept_model, runs_on
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.handler import QUIET, handler, refused_html
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.views import model_card as views
from qlora_ui.ui.views.kept_model import kept_model_html, of_others_html
from qlora_ui.ui.views.recipe import block_head
from qlora_ui.ui.views.words import ASKING


def build(page: Page) -> None:
    """Draw the tab."""
    with gr.Column(elem_classes="q-tab"):
        with gr.Column(elem_classes="q-block"):
            about = "Training leaves the model itself as it is and makes a small file beside it, the adapter."
            gr.HTML(block_head("Which model shall learn?", about), apply_default_css=False)
            cards = live_html("", "q-models")
            page.form.place("model.id", min_width=0)
            facts = live_html("", "q-model-facts")
            progress = live_html("", "q-model-download")
            with gr.Accordion("Advanced", open=False, elem_classes="q-fold", elem_id="q-advanced-model"), gr.Row(elem_classes="q-grid"):
                for option in page.form.unplaced("model"):
                    page.form.place(option.path, min_width=0)
        with gr.Column(elem_classes="q-block"):
            about = "It keeps the model in a quarter of the memory, so that it can be trained on a smaller graphics card."
            gr.HTML(block_head("What does 4-bit do?", about), apply_default_css=False)
            with gr.Accordion("The numbers of the chosen model", open=False, elem_classes="q-fold", elem_id="q-quantization"):
                explainer = gr.HTML("", elem_id="q-quantization-body", apply_default_css=False)
        with gr.Column(elem_classes="q-block"):
            gr.HTML(block_head("From the Hugging Face Hub", "Nothing is asked for until you search or download."), apply_default_css=False)
            with gr.Row(elem_classes="q-search"):
                text = gr.Textbox(
                    max_lines=1, label="Search", placeholder="qwen, llama, smollm …", elem_id="q-hub-text", elem_classes="q-labelled"
                )
                button = gr.Button("Search", elem_id="q-hub-search", elem_classes="q-tool", scale=0)
            found = live_html("", "q-hub-found")
            known = live_html("", "q-hub-known")
    _wire(page, (cards, facts, explainer, known), progress)
    _wire_search(page, text, button, found)
    for component in (cards, facts, progress, found, known):
        _wire_actions(page, component)


def _wire(page: Page, outputs: tuple[Any, ...], progress: Any) -> None:
    service = page.service

    def draw(draft: Draft) -> tuple[str, str, str, str]:
        entries = service.models()
        entry = _entry(entries, draft.model_id)
        return (
            views.cards_html(draft, entries),
            views.facts_html(
                draft, entry, service.downloads.latest(), is_missing=_is_missing(page, draft), kept=_kept(service, draft, entry)
            ),
            views.quantization_html(explain(draft.facts) if draft.facts is not None else None),
            views.known_html(draft, _known_models(page, entries)),
        )

    page.on_form(draw, outputs)
    page.live(lambda run_id: views.download_html(service.downloads.latest()), [progress])


def _wire_search(page: Page, text: gr.Textbox, button: gr.Button, found: Any) -> None:
    @handler
    def look(data: dict[Any, Any]) -> str:
        # A refusal of the Hub belongs where the results would be.
        words = str(data[text]).strip()
        if not words:
            return ""
        try:
            return views.found_html(search(words), words)
        except ModelError as error:
            return refused_html(error)

    def wire() -> None:
        for listener in (button.click, text.submit):
            asking = listener(lambda: ASKING, None, [found], queue=False, **QUIET)
            asking.then(look, {text}, [found], **QUIET)

    page.when_complete(wire)


def _wire_actions(page: Page, component: Any) -> None:
    """Choosing a model, downloading it, stopping that, deleting one."""

    @handler
    def act(event: gr.EventData, data: dict[Any, Any]) -> list[Any]:
        action = Action.of(event)
        updates = [gr.skip() for _ in page.form.outputs]
        if action.name == "choose":
            updates = page.form.show_values({"model.id": action.id, "model.revision": None})
        elif action.name == "download" and is_hub_id(action.id):
            page.service.downloads.start(action.id, page.form.values(data)["model.revision"])
        elif action.name == "cancel-download":
            page.service.downloads.cancel()
        elif action.name == "delete-model":
            _delete(page.service, action.id)
        return updates

    def wire() -> None:
        # Through the queue: Gradio shows no failure of an event that goes past it.
        in_turn: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": 1}
        event = component.act(act, page.form.inputs, page.form.outputs, **QUIET, **in_turn)
        page.refresh_after(event)
        page.redraw_after(event)

    page.when_complete(wire)


def _entry(entries: list[ModelEntry], model_id: str) -> ModelEntry | None:
    return next((entry for entry in entries if entry.id == model_id), None)


def _is_missing(page: Page, draft: Draft) -> bool:
    return needs_download(draft.model_id, draft.values.get("model.revision") or None, page.service.workspace)


def _kept(service: Service, draft: Draft, entry: ModelEntry | None) -> str:
    """What the chosen model takes of the disk, and how to delete it."""
    model_id = draft.model_id
    kept = kept_model(service.workspace, model_id)
    if kept is not None:
        return kept_model_html(kept, runs_on(model_id, service.run_lists.rows()))
    return of_others_html(model_id, held_bytes(model_id)) if entry is not None and entry.kind == "hub" else ""


def _delete(service: Service, model_id: str) -> None:
    rows, worked_on = service.run_lists.all_rows("model"), service.worked_on()
    for row in runs_on(model_id, rows):
        if row.id in worked_on:
            why = f"It is the base of {row.name}, and the {worked_on[row.id]} that works on that reads it"
            raise ModelError("The model is in use.", why=why, fix="Let it end, or cancel it, first", code="model-needed")
    delete_model(service.workspace, model_id, rows)
    # Else the next question would fail, or bring all of it again.
    service.desk.leave(None, model_id)
    service.models_changed()


def _known_models(page: Page, entries: list[ModelEntry]) -> list[tuple[str, ModelFacts]]:
    """Models whose shape the app knows by heart and that are not here yet."""
    here = {entry.id for entry in entries}
    found = []
    for model_id in KNOWN_CONFIGS:
        facts = page.service.facts(model_id) if model_id not in here else None
        if facts is not None:
            found.append((model_id, facts))
    return sorted(found, key=lambda pair: pair[1].num_params)
