"""The Export tab: a finished run as an adapter, a whole model, a file for llama.cpp or Ollama, or a program."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr

from qlora_ui.base.errors import ModelError, QloraUiError, RunError
from qlora_ui.base.files import put_in_place, read_json, size_of_tree
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import format_bytes
from qlora_ui.catalog.exports import EXPORT_FORMS, EXPORT_NOTES, SCRIPTS
from qlora_ui.hardware.system import read_system
from qlora_ui.models.catalogue import find_model_folder, tuned_name
from qlora_ui.runs.card import Holder
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.kept_models import delete_export, runs_on_exports
from qlora_ui.runs.read import RunView
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.under_way import export_mark, exports_ended_early, forget_ended, marked
from qlora_ui.runs.workspace import MAKING
from qlora_ui.script.bundle import write_bundle
from qlora_ui.ui import run_actions
from qlora_ui.ui.action import Action, live_html
from qlora_ui.ui.background import Progress
from qlora_ui.ui.chosen import run_to_take
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.packing import pack
from qlora_ui.ui.page import Page
from qlora_ui.ui.saving import save_js
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.background_view import run_picker
from qlora_ui.ui.views.exports import (
    NOTHING,
    Card,
    beside_words,
    command_for,
    ended_words,
    exports_html,
    packing_key,
    source_words,
    work_key,
)
from qlora_ui.ui.views.kept_model import useless_without
from qlora_ui.ui.views.run import LOOKING


def build(page: Page) -> None:
    """Draw the tab."""
    work = page.service.background("export")
    plans: dict[tuple[str, str], Any] = {}
    view = live_html(LOOKING, "export-view")
    file = gr.DownloadButton("Save", visible=False, elem_id="export-file", variant="primary")
    ready = gr.Textbox(visible="hidden", elem_id="export-ready")
    packings = itertools.count(1)
    page.live(lambda run_id: _draw(page.service, run_id, work.progress(), plans), [view])

    @handler
    def act(event: gr.EventData) -> Any:
        action = Action.of(event)
        form = action.data.get("form", "")
        if action.name == "cancel":
            work.cancel()
        if action.name in ("export-now", "export-again"):
            run = find_run(page.service.workspace, action.id)

            def job(on_progress: OnProgress, is_cancelled: IsCancelled) -> str:
                with marked(export_mark(run, form), lambda: work.is_closed):
                    return _make(page.service, run, form, on_progress, is_cancelled)

            work.press(work_key(run.id, form), job)
            return [gr.DownloadButton(visible=False), ""]
        if action.name == "download":
            run = find_run(page.service.workspace, action.id)
            packing = packing_key(run.id, form)
            packed = work.finish(packing, lambda on_progress, is_cancelled: _pack(page.service, run, form, on_progress, is_cancelled))
            if packed is None:
                return [gr.skip(), gr.skip()]  # cancelled, or the card says why not
            label = f"Save {packed.name} ({format_bytes(packed.stat().st_size)})"
            return [gr.DownloadButton(label, value=str(packed), visible=True), f"export {next(packings)}"]
        if action.name == "forget-ended":
            forget_ended(find_run(page.service.workspace, action.id))
        if action.name == "delete-export":
            run = find_run(page.service.workspace, action.id)
            delete_export(page.service.workspace, run, form, page.service.run_lists.all_rows("export"))
            return [gr.DownloadButton(visible=False), ""]
        return [gr.skip(), gr.skip()]

    # Several at once: who waits for a packing may want to cancel it.
    quiet = QUIET | {"trigger_mode": "multiple"}
    done = view.act(act, None, [file, ready], concurrency_limit=8, **quiet)
    done.then(None, [ready], None, js=save_js("export-file"), api_visibility="private")
    page.redraw_after(done)
    run_actions.wire(page, view)


def _draw(service: Service, run_id: str, progress: Progress, plans: dict[tuple[str, str], Any]) -> str:
    view = run_to_take(service, run_id)
    if view is None:
        return NOTHING
    rows = service.run_lists.rows()
    picker = run_picker(rows, view.id, "Take away")
    on_exports = runs_on_exports(service.workspace, rows).items()
    needed = {form: useless_without(needing) for (source, form), needing in on_exports if source == view.id}
    names, cards = {row.id: row.name for row in rows}, list(_cards(service, view, plans, needed))
    # Beside an export no other is begun, and what is said then of it would be untrue.
    busy = _busy(service) if not progress.is_running else None
    source = " ".join(filter(None, (source_words(view), beside_words(busy.sentence(), has_card=bool(service.gpus())) if busy else "")))
    ended = ended_words(exports_ended_early(view.run), made={card.form for card in cards if card.path}) if not progress.is_running else ""
    return exports_html(cards, view.id, progress, picker, names=names, workspace=service.workspace.flag, source=source, ended=ended)


def _cards(
    service: Service, view: RunView, plans: dict[tuple[str, str], Any], needed: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Card]:
    """A card for each form; `needed` says by form which runs have that export as their base."""
    found = read_json(view.run.exports / EXPORT_NOTES)
    notes = found if isinstance(found, dict) else {}
    name = tuned_name(view.config.model.id) if view.config is not None else "model"
    for form in EXPORT_FORMS:
        plan = _plan(service, view, form.name, plans)
        path = view.run.exports / form.name
        sign, note, adapter_sha256 = _note(notes.get(form.name))
        yield Card(
            form.name,
            form.title,
            form.about,
            command_for(form.name, name),
            size_bytes=getattr(plan, "size_bytes", None),
            memory_bytes=getattr(plan, "memory_bytes", None),
            path=str(path) if path.is_dir() else "",
            note=note,
            sign=sign,
            is_earlier=bool(adapter_sha256) and adapter_sha256 != view.run.adapter_sha256,
            problem=plan if isinstance(plan, str) else "",
            needed=needed.get(form.name, ""),
        )
    for form_name, (title, about) in SCRIPTS.items():
        path = view.run.exports / form_name
        size = size_of_tree(view.run.data) if view.run.data.is_dir() else None
        yield Card(form_name, title, about, command_for(form_name, name), size_bytes=size, path=str(path) if path.is_dir() else "")


def _note(value: Any) -> tuple[str, str, str]:
    """Sign and sentence of an export's check, and the adapter that it was made of; the last is empty for those of earlier versions."""
    if not isinstance(value, dict):
        return "", str(value or ""), ""
    return str(value.get("sign", "")), str(value.get("note", "")), str(value.get("adapter_sha256") or "")


def _plan(service: Service, view: RunView, form: str, plans: dict[tuple[str, str], Any]) -> Any:
    """What the export takes, kept for each run; a sentence where it cannot be made."""
    key = (view.id, form)
    if key not in plans and view.config is not None:
        base = find_model_folder(view.config.model.id, view.config.model.revision, service.workspace)
        try:
            plans[key] = engine_object("exports.plan:plan_export")(view.run, base, form) if base is not None or form == "adapter" else None
        except ModelError as error:
            return str(error)  # not kept: what is gone may be put back
        except (QloraUiError, OSError, KeyError) as error:
            plans[key] = str(error) if isinstance(error, QloraUiError) else None
    return plans.get(key)


def _make(service: Service, run: RunDir, form: str, on_progress: OnProgress, is_cancelled: IsCancelled) -> str:
    """Make one export; an earlier one stays until the new one is whole."""
    if form in SCRIPTS:
        return str(_make_script(service, run, form, on_progress, is_cancelled))
    on_progress("Starting the engine", None)
    export = engine_object("exports.export:export_run")
    busy = _busy(service)
    if busy is not None:
        _refuse_without_memory(service, run, form, busy)
        words = busy.sentence()
        why = f"{words[0].lower()}{words[1:].rstrip('.')}; make it again once that has ended, and it will be"
        how: dict[str, Any] = {"num_prompts": 0, "why_unchecked": why, "on_cpu": True}
        return str(export(run, form, service.workspace, **how, on_progress=on_progress, is_cancelled=is_cancelled).path)
    with service.card.hold_after_chat("export", service.readers.view(run).name, run_id=run.id, is_cancelled=is_cancelled):
        result = export(run, form, service.workspace, on_progress=on_progress, is_cancelled=is_cancelled)
    return str(result.path)


def _busy(service: Service) -> Holder | None:
    """Who has a model in memory and does not give it up for an export, as a chat does: exports are then made beside it."""
    return next((holder for holder in service.card.holders() if holder.who != "chat"), None)


def _refuse_without_memory(service: Service, run: RunDir, form: str, busy: Holder) -> None:
    """What ran out of memory would take the other's work with it. An adapter's files are copied."""
    if form == "adapter":
        return
    needed, free = engine_object("exports.export:plan")(run, form, service.workspace).memory_bytes, read_system().ram_available_bytes
    if needed > free:
        why = f"Beside it this takes {format_bytes(needed)} of main memory, and {format_bytes(free)} are free"
        raise RunError(busy.sentence(), why=why, fix="Wait until it is done", code="card-busy")


def _make_script(service: Service, run: RunDir, form: str, on_progress: OnProgress, is_cancelled: IsCancelled) -> Path:
    on_progress("Writing the program and its rows", None)
    target = run.exports / form
    run.exports.mkdir(exist_ok=True)
    gpu = next(iter(service.gpus()), None)
    with tempfile.TemporaryDirectory(prefix=f"{MAKING}{form}-", dir=run.exports) as aside:
        made = Path(aside) / form
        write_bundle(run.config(), run.data, made, "script" if form == "script" else "trl-yaml", gpu=gpu, run=run)
        stop_if(is_cancelled, "The export")
        put_in_place(made, target)
    return target


def _pack(service: Service, run: RunDir, form: str, on_progress: OnProgress = silent, is_cancelled: IsCancelled = never) -> Path:
    """The export as a ZIP to save."""
    folder = run.exports / form
    if form not in {known.name for known in EXPORT_FORMS} | SCRIPTS.keys() or not folder.is_dir():
        raise RunError("This export is not there any more.", fix="Make it again", code="export-missing")
    stem = re.sub(r"[\W-]+", "-", service.readers.view(run).name.lower())[:40].strip("-") or "run"
    # Inside the folder that Gradio may serve.
    target = service.workspace.uploads / "exports" / run.id / f"{stem}-{form}.zip"
    return pack(folder, target, on_progress=on_progress, is_cancelled=is_cancelled)
