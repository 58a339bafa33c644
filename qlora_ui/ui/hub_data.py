"""Finding a dataset on the Hub: search, subset and split, the first rows before anything is downloaded."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_ui.base.errors import DataError
from qlora_ui.data.hub import HubSplits, first_rows, search, splits_of
from qlora_ui.data.sources import hub_id
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.data_adders import Adds
from qlora_ui.ui.handler import QUIET, handler, refused_html
from qlora_ui.ui.page import Page
from qlora_ui.ui.views import hub_data as views
from qlora_ui.ui.views.words import ASKING

NOTHING_CHOSEN: dict[str, str] = {}


def build_hub_search(page: Page, adds: Adds) -> None:
    """Draw the search and wire it; a dataset that is taken goes into the form through `adds`."""
    with gr.Accordion("From the Hugging Face Hub", open=False, elem_classes="q-fold", elem_id="q-hub-data"):
        gr.HTML('<p class="q-small">Nothing is asked for until you search. Rows are shown before a download.</p>', apply_default_css=False)
        with gr.Row(elem_classes="q-search"):
            text = gr.Textbox(max_lines=1, label="Search for datasets", placeholder="chat, poems, OWNER/NAME …", elem_id="q-hub-data-text",
                              elem_classes="q-labelled")  # fmt: skip
            button = gr.Button("Search", elem_id="q-hub-data-search", elem_classes="q-tool", scale=0)
        found = live_html("", "q-hub-data-found")
        shown = live_html("", "q-hub-data-look")
        # Repository, subset and split that this page looks at.
        chosen = gr.State(NOTHING_CHOSEN)
    _wire_search(page, text, button, (found, shown, chosen))
    _wire_choices(page, found, shown, chosen, adds)


def _wire_search(page: Page, text: gr.Textbox, button: gr.Button, outputs: tuple[Any, Any, Any]) -> None:
    @handler
    def find(words: str) -> tuple[str, str, dict[str, str]]:
        # A refusal of the Hub belongs where the results would be.
        words = words.strip()
        if not words:
            return '<p class="q-small" role="status">Type a part of a name first.</p>', "", NOTHING_CHOSEN
        try:
            datasets = search(words)
        except DataError as error:
            # A dataset that was looked at before is known without a network.
            if hub_id(words) is None:
                return refused_html(error), "", NOTHING_CHOSEN
            return "", *_look(page, words, "", "")
        if not datasets and hub_id(words) is not None:
            return "", *_look(page, words, "", "")
        return views.found_html(datasets, words), "", NOTHING_CHOSEN

    def wire() -> None:
        for listener in (button.click, text.submit):
            asking = listener(lambda: ASKING, None, [outputs[0]], queue=False, **QUIET)
            asking.then(find, [text], list(outputs), **QUIET)

    page.when_complete(wire)


def _wire_choices(page: Page, found: Any, shown: Any, chosen: gr.State, adds: Adds) -> None:
    """Looking at a dataset, at another subset of it, at another split; and taking it."""

    @handler
    def act(event: gr.EventData, data: dict[Any, Any]) -> list[Any]:
        action, now = Action.of(event), data[chosen]
        updates, look = [gr.skip() for _ in page.form.outputs], (gr.skip(), gr.skip())
        if action.name == "hub-look":
            look = _look(page, action.id, "", "")
        elif action.name == "hub-subset" and now:
            look = _look(page, now["repo"], action.text, now["split"])
        elif action.name == "hub-split" and now:
            look = _look(page, now["repo"], now["subset"], action.text)
        elif action.name == "hub-use" and now:
            updates = adds(data, [DataSource(id=f"hub:{now['repo']}", config=now["subset"], split=now["split"])])
        return [*look, *updates]

    def wire() -> None:
        inputs, outputs = page.form.inputs | {chosen}, [shown, chosen, *page.form.outputs]
        # The Hub may take long to answer: who looks at another dataset meanwhile sees that one in the end.
        in_turn: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": 1}
        for component in (found, shown):
            event = component.act(
                act, inputs, outputs, api_visibility="private", show_progress="minimal", show_progress_on=[shown], **in_turn
            )
            page.refresh_after(event)

    page.when_complete(wire)


def _look(page: Page, repo: str, subset: str, split: str) -> tuple[str, dict[str, str]]:
    """The dataset as the page shows it, and what is chosen of it; a subset or split that it lacks gives way to its first."""
    workspace = page.service.workspace
    try:
        splits = splits_of(repo, workspace)
    except DataError as error:
        return refused_html(error), NOTHING_CHOSEN
    subset, split = _existing(splits, subset, split)
    try:
        look = views.HubLook(splits, subset, split, first_rows(repo, subset, split, workspace, views.SHOWN_ROWS))
    except DataError as error:
        look = views.HubLook(splits, subset, split, refusal=error)
    return views.look_html(look), {"repo": repo, "subset": subset, "split": split}


def _existing(splits: HubSplits, subset: str, split: str) -> tuple[str, str]:
    if subset not in splits.subsets:
        subset = splits.subset(None)
    names = splits.subsets[subset]
    if split not in names:
        split = "train" if "train" in names else next(iter(names))
    return subset, split
