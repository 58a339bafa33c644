"""The ways to add a dataset: an upload, the built-in one, liked chats, a path or a name on the Hub, pasted rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import gradio as gr

from qlora_ui.base.errors import QloraUiError
from qlora_ui.data.load import inspect
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import BUILTIN_DATA, DataSection
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.handler import QUIET, TOAST_S, handler, problems_html, toast_html
from qlora_ui.ui.new_data import KEPT_ROWS_WORDS, keep_pasted, keep_uploads, kept_source, named_source
from qlora_ui.ui.page import Page


class Adds(Protocol):
    """The form's updates that put datasets into the list of sources, and take the one of the id `without` off it."""

    def __call__(self, data: dict[Any, Any], sources: Sequence[DataSource], without: str = "") -> list[Any]: ...


def build_adders(page: Page, adds: Adds) -> None:
    """Draw the ways and wire them; what is added goes into the form through `adds`."""
    _wire(page, adds, _place())


def _place() -> dict[str, Any]:
    with gr.Row(elem_classes="q-buttons"):
        # Any file can be chosen: what it is, is told by its bytes and said in our words. Phones grey out all that they do not know.
        upload = gr.UploadButton("Upload files", file_count="multiple", elem_id="q-upload", elem_classes="q-tool", size="md")
        builtin = gr.Button("Built-in dataset", elem_id="q-add-builtin", elem_classes="q-tool", size="md")
        kept = gr.Button(KEPT_ROWS_WORDS, elem_id="q-add-kept", elem_classes="q-tool", size="md")
    gr.HTML(
        # static/upload.js says there how far an upload is.
        '<div id="q-uploading"></div><p class="q-small">JSONL, JSON, CSV, TSV, Parquet or text, also packed; the layout is found out. '
        "In a text, write “Question:” and “Answer:” before each.</p>",
        apply_default_css=False,
    )
    with gr.Row(elem_classes="q-search"):
        name = gr.Textbox(
            max_lines=1,
            label="A path, or OWNER/NAME on the Hub",
            elem_id="q-source-name",
            elem_classes="q-labelled",
            placeholder="~/data/chats.jsonl",
        )
        add = gr.Button("Add", elem_id="q-source-add", elem_classes="q-tool", scale=0)
    with gr.Accordion("Paste rows", open=False, elem_classes="q-fold", elem_id="q-paste"):
        text = gr.Textbox(
            label="JSONL, JSON or CSV as in a file, or lines with “Question:” and “Answer:”",
            lines=6,
            max_lines=14,
            elem_id="q-paste-text",
            elem_classes="q-labelled q-mono",
            placeholder='{"prompt": "Hello", "completion": "Ahoy"}',
        )
        paste = gr.Button("Use these rows", elem_id="q-paste-add", elem_classes="q-tool", scale=0)
        rejected = gr.State("")
    return {
        "upload": upload,
        "builtin": builtin,
        "kept": kept,
        "name": name,
        "add": add,
        "text": text,
        "paste": paste,
        "rejected": rejected,
    }


def _wire(page: Page, adds: Adds, adders: dict[str, Any]) -> None:
    workspace = page.service.workspace

    def added(data: dict[Any, Any], ids: Sequence[str], without: str = "") -> list[Any]:
        return adds(data, [DataSource(id=source_id) for source_id in ids], without)

    @handler
    def upload(data: dict[Any, Any]) -> list[Any]:
        kept_ids, problems = keep_uploads(data[adders["upload"]], workspace)
        if problems:
            gr.Warning(toast_html("Not all files were added", problems_html(problems)), duration=TOAST_S)
        return added(data, kept_ids)

    @handler
    def builtin(data: dict[Any, Any]) -> list[Any]:
        return added(data, [BUILTIN_DATA])

    @handler
    def kept(data: dict[Any, Any]) -> list[Any]:
        return added(data, [kept_source(workspace)])

    @handler
    def by_name(data: dict[Any, Any]) -> list[Any]:
        return [*added(data, [named_source(str(data[adders["name"]]), workspace)]), ""]

    @handler
    def pasted(data: dict[Any, Any]) -> list[Any]:
        source = keep_pasted(str(data[adders["text"]]), workspace)
        updates = added(data, [source], without=data[adders["rejected"]])
        # Rows that have to be corrected stay in the box, and the corrected ones take their place.
        return [*updates, "", ""] if _is_usable(source, workspace) else [*updates, gr.skip(), source]

    def wire() -> None:
        inputs, outputs = page.form.inputs, page.form.outputs
        events = [
            adders["upload"].upload(upload, inputs | {adders["upload"]}, outputs, **QUIET),
            adders["builtin"].click(builtin, inputs, outputs, **QUIET),
            adders["kept"].click(kept, inputs, outputs, **QUIET),
            adders["add"].click(by_name, inputs | {adders["name"]}, [*outputs, adders["name"]], **QUIET),
            adders["name"].submit(by_name, inputs | {adders["name"]}, [*outputs, adders["name"]], **QUIET),
            adders["paste"].click(
                pasted, inputs | {adders["text"], adders["rejected"]}, [*outputs, adders["text"], adders["rejected"]], **QUIET
            ),
        ]
        for event in events:
            page.refresh_after(event)

    page.when_complete(wire)


def _is_usable(source_id: str, workspace: Workspace) -> bool:
    """Whether every row of a file can be learned from as it is; what was read of it is kept for the verdict."""
    try:
        return inspect(DataSection(sources=(DataSource(id=source_id),)), workspace).verdict != "not-trainable"
    except QloraUiError:
        return False
