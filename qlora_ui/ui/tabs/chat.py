"""The Chat tab: a run and its base answer the same question, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import gradio as gr

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.units import format_bytes
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.held_back import held_back_rows
from qlora_ui.runs.registry import find_run
from qlora_ui.settings.sections import BUILTIN_MODEL
from qlora_ui.ui.chat_desk import ChatDesk
from qlora_ui.ui.chat_files import as_markdown, as_rows, file_name, kinds_of_file
from qlora_ui.ui.handler import attempt, problems_html
from qlora_ui.ui.markup import whole_letters
from qlora_ui.ui.page import Page
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.background_view import MOST_RUNS
from qlora_ui.ui.views.chat_view import context_line, kept_turn_html, state_line
from qlora_ui.ui.views.words import ago, describe_model, model_title

POLL_S = 0.8
"""How long an asking page is kept waiting for news while an answer is being given."""
SUGGESTIONS = ("How do I boil an egg?", "Why is the sky blue?", "Write two lines about the sea.")


def build(page: Page) -> None:
    """Draw the tab."""
    desk = page.service.desk

    def talk(asked: dict[str, Any]) -> dict[str, Any]:
        return _talk(page.service, asked)

    talk.__name__ = "talk"
    chat = gr.HTML(
        "",
        html_template='<div class="q-chat"></div>',
        js_on_load='mountChat("chat-view", element, server);',
        server_functions=[talk],
        elem_id="chat-view",
        apply_default_css=False,
    )

    def news(run_id: str) -> dict[str, Any]:
        # Not only the user frees the memory: a run or an evaluation does as well.
        return {"version": desk.version, "runs": _runs_version(page.service), "loaded": _loaded(page.service) is not None}

    page.live(news, [chat])


def choose_run(service: Service, run_id: str) -> None:
    """Talk to a run's adapter from now on, or to its newest checkpoint where it has none; with its base beside it."""
    run = find_run(service.workspace, run_id)
    newest = None if run.has_adapter else run.newest_checkpoint
    service.desk.choose(_of_run(service, run_id, newest.name if newest is not None else None))


def _of_run(service: Service, run_id: str, checkpoint: str | None = None) -> ChatTarget:
    config = find_run(service.workspace, run_id).config()
    return ChatTarget(config.model.id, config.model.revision, run_id, checkpoint)


def _talk(service: Service, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a page asks of the conversation, then say what is new since the version that it has.

    The page's boundary, as @handler is for events: failures come back as words.
    """
    desk = service.desk
    asked = {name: whole_letters(value) if isinstance(value, str) else value for name, value in asked.items()}

    def act() -> dict[str, Any] | None:
        do = _DEEDS.get(str(asked.get("do", "")))
        if do is not None:
            return do(service, desk, asked)
        if desk.busy:
            desk.wait(int(asked.get("version", 0)), POLL_S)
        return None

    extra, problems = attempt(act, "talk")
    drawn = _drawn(service, desk, asked.get("has"))
    return {**drawn, **(extra or {}), "failure": problems_html(problems) if problems else ""}


def _drawn(service: Service, desk: ChatDesk, has: Any = None) -> dict[str, Any]:
    """The whole conversation; a turn whose mark is among those that the page `has`, at its place, is None."""
    if desk.who is not None and desk.who.run_id and not (service.workspace.runs / desk.who.run_id).exists():
        desk.leave(desk.who.run_id)  # deleted by the command line or in the folder
    if not desk.is_chosen:
        _propose_newest(service, desk)
    loaded = _loaded(service)
    with desk.locked():
        who = desk.who or ChatTarget()
        turns, marks = _turns(service, desk, who, has if isinstance(has, list) else [])
        return {
            "version": desk.version,
            "heard": list(desk.record.heard),
            "turns": turns,
            "marks": marks,
            "busy": desk.busy,
            "state": state_line(desk.busy, desk.doing),
            "problems": problems_html(desk.problems) if desk.problems else "",
            "note": desk.note,
            "context": context_line(desk.context, desk.record.history.tools),
            "loaded": f"{format_bytes(loaded.num_bytes)} in memory, {loaded.device}" if loaded else "",
            "mode": desk.mode if who.run_id else "base",
            "canCompare": bool(who.run_id),
            "who": who.key,
            "targets": _targets(service, who),
            "system": desk.record.history.system,
            "sampling": {
                "temperature": desk.record.sampling.temperature,
                "top_p": desk.record.sampling.top_p,
                "max_tokens": desk.record.sampling.max_tokens,
                # As text: a browser rounds numbers of more than 15 digits.
                "seed": "" if desk.record.sampling.seed is None else str(desk.record.sampling.seed),
            },
            # What somebody typed is not to be lost for the sake of a row.
            "own": any(not notes.reference for notes in desk.record.notes),
            "files": [] if desk.busy else kinds_of_file(desk.record.history),
            "unseen": bool(who.run_id and held_back_rows(service.workspace, who.run_id, most=1)),
            "suggestions": _suggestions(service, who),
        }


def _turns(service: Service, desk: ChatDesk, who: ChatTarget, had: list[Any]) -> tuple[list[str | None], list[str]]:
    """Every turn as HTML, None where the page `had` it, and the mark of each.

    An answer of a hundred pieces would else bring a long conversation a hundred times.
    """
    turns = desk.record.history.turns
    last = len(turns) - 1
    drawn = [
        kept_turn_html(
            index,
            turn,
            desk.record.notes[index],
            is_last=index == last,
            is_answering=bool(desk.busy) and index == last,
            waiting=desk.sides if desk.busy and index == last else (),
            end=turn_end(service, turn.asked_of, turns[index + 1].asked_of if index < last else who.key),
        )
        for index, turn in enumerate(turns)
    ]
    marks = [f"{hash(html) & 0xFFFFFFFFFFFF:x}" for html in drawn]
    return [None if had[index : index + 1] == [mark] else html for index, (html, mark) in enumerate(zip(drawn, marks, strict=True))], marks


def turn_end(service: Service, talked_to: str, next_one: str) -> str:
    """That somebody else answers from here on; empty where it is the same one."""
    if talked_to == next_one:
        return ""
    former, later = _name_of(service, talked_to), _name_of(service, next_one)
    return f"“{former}” answered up to here, “{later}” from here on. It sees nothing of what was said above."


def _loaded(service: Service) -> Any:
    return service.chat.loaded() if service.has_chat else None


def _targets(service: Service, who: ChatTarget) -> list[dict[str, Any]]:
    """What can be talked to, in groups: runs with what was saved of them, then models alone."""
    rows = [row for row in service.run_lists.rows() if row.has_adapter or row.has_checkpoint or row.id == who.run_id]
    # One that is talked to stands in the list, however old it is.
    offered = [row for place, row in enumerate(rows) if place < MOST_RUNS or row.id == who.run_id]
    runs: list[dict[str, Any]] = []
    for row in offered:
        is_theirs = row.id == who.run_id
        if row.has_adapter or (is_theirs and not who.checkpoint):
            runs.append({"key": ChatTarget(run_id=row.id).key, "label": f"{row.name} · {ago(row.created)}"})
        if is_theirs or (row.has_checkpoint and not row.has_adapter):
            # Of a run that has no adapter yet, the newest one stands for it until it is chosen.
            steps = _other_steps(service, row.id, who.checkpoint if is_theirs else None)[: None if is_theirs else 1]
            saved = {step: ChatTarget(run_id=row.id, checkpoint=f"checkpoint-{step}") for step in steps}
            runs += [{"key": one.key, "label": f"{row.name}, checkpoint of step {step}"} for step, one in saved.items()]
    if num_older := len(rows) - len(offered):
        words = f"{num_older:,} older: on the Runs tab, under ⋯, “Chat with it”"
        runs.append({"key": "", "label": words, "isOff": True})
    models = {BUILTIN_MODEL: describe_model(BUILTIN_MODEL)}
    others = (entry for entry in service.models() if entry.folder is not None and not entry.problem and entry.id != BUILTIN_MODEL)
    models |= {entry.id: entry.title for entry in others}
    alone = [{"key": ChatTarget(model_id).key, "label": title} for model_id, title in models.items()]
    groups = [{"label": "Your runs", "options": runs}, {"label": "Base models alone", "options": alone}]
    return [group for group in groups if group["options"]]


def _other_steps(service: Service, run_id: str, talked_to: str | None) -> list[int]:
    """Checkpoints that are not the run's adapter, newest first; the one that is talked to stays, whatever it is."""
    try:
        run = find_run(service.workspace, run_id)
    except QloraUiError:
        return []  # deleted since the list of runs was read
    others = run.other_steps()
    return [step for step in run.saved_steps() if step in others or talked_to == f"checkpoint-{step}"]


def _propose_newest(service: Service, desk: ChatDesk) -> None:
    """Until somebody chooses: the newest run that has learned something, else the built-in model."""
    newest = next((row for row in service.run_lists.rows() if row.has_adapter), None)
    if newest is not None and desk.who is not None and desk.who.run_id == newest.id:
        return
    try:
        desk.propose(_of_run(service, newest.id) if newest is not None else ChatTarget())
    except QloraUiError:
        desk.propose(ChatTarget())  # unreadable settings: its base cannot be known


def _suggestions(service: Service, who: ChatTarget) -> list[str]:
    if who.run_id is None:
        return list(SUGGESTIONS)
    try:
        probes = find_run(service.workspace, who.run_id).config().eval.probes
    except QloraUiError:
        probes = ()
    rows = [row.question for row in held_back_rows(service.workspace, who.run_id, most=3)]
    return [text for text in dict.fromkeys([*probes, *rows, *SUGGESTIONS]) if len(text) < 120][:3]


def _runs_version(service: Service) -> str:
    """Another one where the list of who can be talked to changed: on another page, or in the folder itself."""
    shown = [(row.id, row.name, row.has_adapter, row.has_checkpoint) for row in service.run_lists.rows()]
    return f"{hash(tuple(shown)) & 0xFFFFFFFFFFFF:x}"


Deed = Callable[[Service, ChatDesk, Mapping[str, Any]], dict[str, Any] | None]


def _choose(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> None:
    who = ChatTarget.of_key(str(asked.get("key", "")))
    desk.choose(who if who.run_id is None else _of_run(service, who.run_id, who.checkpoint))


def _unload(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> dict[str, Any]:
    freed = desk.unload()
    return {"note": f"Freed {format_bytes(freed)}."} if freed else {}


def _retry(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> None:
    with desk.locked():
        desk.record.place_of(str(asked.get("of")), is_last=True)
        if not desk.busy:  # else it is the second press of a double click
            desk.retry()


def _edit(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> None:
    with desk.locked():
        desk.edit(desk.record.place_of(str(asked.get("of"))), str(asked.get("text", "")))


def _undo(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> dict[str, Any]:
    with desk.locked():
        of = str(asked.get("of"))
        if all(notes.key != of for notes in desk.record.notes):
            return {}  # the second press of a double click: it is taken back
        desk.record.place_of(of, is_last=True)
        return {"draft": desk.undo()}


def _save(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> dict[str, Any]:
    kind, now = str(asked.get("as", "")), datetime.now()
    with desk.locked():
        if desk.busy or kind not in kinds_of_file(desk.record.history):
            raise QloraUiError("The conversation is not as it was.", fix="Look at it again, then save it.", code="stale-page")

        def name_of(key: str) -> str:
            return _name_of(service, key)

        is_text, history = kind == "markdown", desk.record.history
        text = as_markdown(desk.record, name_of, now) if is_text else as_rows(history, kind, name_of)
        return {"file": {"name": file_name(kind, name_of(history.turns[-1].asked_of), now), "text": text}}


def _name_of(service: Service, key: str) -> str:
    """Who was talked to, by the key of `ChatTarget`, as people say it."""
    who = ChatTarget.of_key(key)
    if who.run_id is None:
        return model_title(who.model_id)
    row = next((row for row in service.run_lists.rows() if row.id == who.run_id), None)
    # Some older runs are missing from the list while they are read.
    without = who.run_id if (service.workspace.runs / who.run_id).exists() else f"deleted run {who.run_id}"
    return (row.name if row is not None else without) + (f", {who.checkpoint.replace('-', ' ')}" if who.checkpoint else "")


def _keep(service: Service, desk: ChatDesk, asked: Mapping[str, Any]) -> None:
    with desk.locked():
        desk.keep(desk.record.place_of(str(asked.get("of"))), str(asked.get("side", "")), str(asked.get("text", "")))


_DEEDS: Mapping[str, Deed] = {
    "say": lambda service, desk, asked: desk.say(str(asked.get("text", "")), key=str(asked.get("key", ""))[:64]),
    "retry": _retry,
    "edit": _edit,
    "undo": _undo,
    "clear": lambda service, desk, asked: desk.clear(),
    "stop": lambda service, desk, asked: desk.stop(),
    "unseen": lambda service, desk, asked: desk.ask_unseen_row(),
    "save": _save,
    "keep": _keep,
    "correct": _keep,
    "mode": lambda service, desk, asked: desk.switch(str(asked.get("mode", ""))),
    "system": lambda service, desk, asked: desk.set_up(system=str(asked.get("text", ""))),
    "sampling": lambda service, desk, asked: desk.set_up(sampling=dict(asked.get("values") or {})),
    "choose": _choose,
    "unload": _unload,
}
