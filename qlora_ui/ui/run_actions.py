"""What the buttons of a run do, on whichever tab they stand: one function below ui/ each, then what the page shows next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gradio as gr

from qlora_ui.base.errors import RunError
from qlora_ui.runs.events import Failed
from qlora_ui.runs.kept_models import refuse_while_run_is_needed
from qlora_ui.runs.listing import rename
from qlora_ui.runs.registry import delete_checkpoints, delete_run, find_run
from qlora_ui.runs.run_dir import Request, RunDir
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.action import Action
from qlora_ui.ui.handler import QUIET, handler
from qlora_ui.ui.page import Page
from qlora_ui.ui.tabs.chat import choose_run

REQUESTS = {
    "stop": Request.STOP,
    "stop_now": Request.STOP_NOW,
    "pause": Request.PAUSE,
    "save_now": Request.SAVE_NOW,
}
OPENS = {"open": "train", "chat": "chat", "evaluate": "evaluate", "export": "export"}
"""Buttons that look at a run on another tab."""


OF_THE_TAB = (
    "pick",
    "page",
    "details",
    "only-different",
    "clear",
    "evaluate-now",
    "cancel",
    "export-now",
    "export-again",
    "download",
    "delete-export",
    "forget-ended",
    "measure-disk",
    "free-remade",
)
"""What the tab that the button stands on does itself."""


class Outcome(NamedTuple):
    """What the page shows after a button: another run, another tab, other settings, or nothing of it."""

    run_id: str | None = None
    tab: str = ""
    settings: RunConfig | None = None


def wire(page: Page, component: Any) -> None:
    """Let the buttons inside `component` do what they say, and draw the page anew afterwards."""

    @handler
    def act(event: gr.EventData) -> list[Any]:
        outcome = perform(page, Action.of(event))
        return [
            gr.skip() if outcome.run_id is None else outcome.run_id,
            gr.Tabs(selected=outcome.tab) if outcome.tab else gr.skip(),
            *(page.form.show(outcome.settings) if outcome.settings else [gr.skip()] * len(page.form.outputs)),
        ]

    # The form is complete only when all tabs are built, and so are its outputs.
    def connect() -> None:
        outputs = [page.run_id, page.tabs, *page.form.outputs]
        # Through the queue: Gradio shows no failure of an event that goes past it.
        done = component.act(act, None, outputs, trigger_mode="multiple", **QUIET)
        page.redraw_after(done)
        page.refresh_after(done)

    page.when_complete(connect)


def perform(page: Page, action: Action) -> Outcome:
    """Do it; raises QloraUiError in words where it cannot be done (any more)."""
    if action.name in OPENS:
        if action.name == "chat":
            choose_run(page.service, action.id)
        return Outcome(_run(page, action).id, OPENS[action.name])
    if action.name in REQUESTS:
        page.service.launcher.request(_run(page, action), REQUESTS[action.name])
        return Outcome()
    if action.name in OF_THE_TAB:
        return Outcome()
    do = _ACTIONS.get(action.name)
    if do is None:
        raise RunError("This page is older than the app.", fix="Reload it", code="stale-page")
    return do(page, action)


def _run(page: Page, action: Action) -> RunDir:
    return find_run(page.service.workspace, action.id)


def _resume(page: Page, action: Action) -> Outcome:
    run = page.service.launcher.resume(_run(page, action))
    return Outcome(run.id, "train")


def _copy(page: Page, action: Action) -> Outcome:
    return Outcome(None, "recipe", _fresh(_run(page, action).config()))


def _start_from(page: Page, action: Action) -> Outcome:
    """The run's settings, to begin with what it has learned."""
    run = _run(page, action)
    return Outcome(None, "recipe", _fresh(run.config()).changed({"lora.start_from": run.id}))


def _apply(page: Page, action: Action) -> Outcome:
    """Start again with a suggestion of the failure; the form shows the changed settings too."""
    run = _run(page, action)
    view = page.service.readers.view(run)
    suggestions = view.ended.suggestions if isinstance(view.ended, Failed) else []
    number = int(action.data.get("number", "0") or 0)
    if not 0 <= number < len(suggestions):
        raise RunError(f"Run {view.name} offers this no more.", fix="Look at the page again", code="stale-page")
    config = _fresh(run.config().changed(suggestions[number].get("values", {})))
    started = page.service.launcher.start(config, key=f"{run.id}-apply-{number}-{len(view.timeline)}")
    return Outcome(started.id, "train", config)


def _move(page: Page, action: Action) -> Outcome:
    page.service.launcher.move(_run(page, action), int(action.data.get("to", "0") or 0))
    return Outcome()


def _unqueue(page: Page, action: Action) -> Outcome:
    page.service.launcher.cancel(_run(page, action))
    return Outcome()


def _release(page: Page, action: Action) -> Outcome:
    page.service.launcher.hold(False)
    return Outcome()


def _free(page: Page, action: Action) -> Outcome:
    holder = page.service.launcher.waiting_for()
    if holder is not None and not page.service.card.free(holder.who):
        raise RunError(holder.sentence(), why="It cannot be asked to let go", fix="Wait until it is done", code="card-busy")
    return Outcome()


def _rename(page: Page, action: Action) -> Outcome:
    rename(_run(page, action), action.text)
    return Outcome()


def _notes(page: Page, action: Action) -> Outcome:
    _run(page, action).write_about(notes=action.text.strip()[:4000])
    return Outcome()


def _tags(page: Page, action: Action) -> Outcome:
    words = [" ".join(word.split())[:40] for word in action.text.split(",")]
    _run(page, action).write_about(tags=list(dict.fromkeys(word for word in words if word))[:20])
    return Outcome()


def _delete(page: Page, action: Action) -> Outcome:
    run, workspace, lists = _run(page, action), page.service.workspace, page.service.run_lists
    refuse_while_run_is_needed(workspace, run.id, lists.all_rows("run"), lists.config)
    delete_run(workspace, run)
    lists.forget()
    page.service.desk.leave(run.id)
    return Outcome("")


def _delete_checkpoints(page: Page, action: Action) -> Outcome:
    delete_checkpoints(page.service.workspace, _run(page, action))
    return Outcome()


def _fresh(config: RunConfig) -> RunConfig:
    """Settings for another run: the name stays free so that two runs do not look the same."""
    return config.changed({"output.name": ""})


_ACTIONS: Mapping[str, Callable[[Page, Action], Outcome]] = {
    "all-runs": lambda page, action: Outcome(None, "runs"),
    "look": lambda page, action: Outcome(find_run(page.service.workspace, action.text).id),
    "resume": _resume,
    "copy": _copy,
    "start_from": _start_from,
    "apply": _apply,
    "move": _move,
    "unqueue": _unqueue,
    "release": _release,
    "free": _free,
    "rename": _rename,
    "notes": _notes,
    "tags": _tags,
    "delete": _delete,
    "delete_checkpoints": _delete_checkpoints,
}
