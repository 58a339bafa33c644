"""The head of the Train tab: what the run is, where it is, what can be done with it, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ui.base.errors import sentences
from qlora_ui.base.units import format_bytes, format_count, format_duration, format_percent
from qlora_ui.runs.card import Holder
from qlora_ui.runs.events import Ended, Failed, Finished, Paused, PhaseChanged, RequestSeen, Stopped
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Request, Status
from qlora_ui.settings.run_config import label_of
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import bullet_list, escape, with_units
from qlora_ui.ui.views.words import describe_model, fold, status_chip

PHASES = (
    ("download", "Get model"),
    ("data", "Prepare rows"),
    ("load", "Load model"),
    ("check", "Try the longest"),
    ("train", "Train"),
    ("finish", "Save"),
)
"""Phases in their order; evaluate, probe and save happen inside training."""
_INSIDE_TRAINING = {"evaluate": "checking held-back rows", "probe": "answering probe questions", "save": "saving a checkpoint"}

_END_WORDS = {"chat": "the chat has answered", "evaluation": "the evaluation is done", "export": "the export is done"}
_TABS = {"evaluation": "evaluate", "export": "export"}
"""The button that shows what holds the card."""

LOOKING = '<p class="q-sub" role="status" aria-busy="true">Looking for your runs…</p>'
"""Before the first drawing."""
NO_RUN = (
    '<div class="q-empty"><h2>No run yet</h2><p>Press Start under “Next run”. The loss, the memory and the time left draw '
    "themselves here, and stay when you close the page.</p></div>"
)


def head_html(
    view: RunView | None,
    waiting: Sequence[RunView] = (),
    *,
    is_held: bool = False,
    blocked_by: Holder | None = None,
    elsewhere: RunView | None = None,
    cut_short: str = "",
) -> str:
    """Name, state, phases, progress, buttons, and what ended it.

    `waiting` are the runs in the queue, next one first; `blocked_by` holds the card that the next one waits for;
    `elsewhere` is a run that trains while the page looks at another; `cut_short` says which of its exports ended with the app.
    """
    if view is None:
        return NO_RUN
    parts = (
        _elsewhere(elsewhere),
        _title(view),
        _progress(view),
        _echo(view),
        _ending(view, is_held, blocked_by),
        _unreadable_settings(view),
        _cut_short(view, cut_short),
        _queue(waiting, is_held, blocked_by),
    )
    return f'<section class="q-run" data-run="{escape(view.id)}" aria-label="Run {escape(view.name)}">{"".join(parts)}</section>'


def _elsewhere(view: RunView | None) -> str:
    if view is None:
        return ""
    state = "is getting ready" if view.status is Status.STARTING else "is training now"
    return f'<p class="q-note q-note-live">{escape(view.name)} {state}. {act_button("Show it", "open", view.id, look="link")}</p>'


def _unreadable_settings(view: RunView) -> str:
    if not view.problem:
        return ""
    then = " Without its settings it cannot be continued." if view.status.can_resume else ""
    return f'<p class="q-note q-note-warn">{escape(view.problem)}{then}</p>'


def _cut_short(view: RunView, words: str) -> str:
    if not words:
        return ""
    return f'<p class="q-note q-note-warn">{escape(words)} {act_button("Show it", "export", view.id, look="link")}</p>'


def _title(view: RunView) -> str:
    facts = []
    if view.config:
        facts.append(describe_model(view.config.model.id))
    if plan := view.planned:
        facts.append(f"{plan.rows_in_words()}, {format_count(plan.num_trained_tokens)} trained tokens a pass")
        facts.append(f"{plan.num_steps:,} steps of {plan.effective_batch}")
        facts.append(f"{format_count(plan.trainable_params)} of {format_count(plan.total_params)} weights learn")
    if view.started:
        facts.append(f"on {view.started.device}")
    line = " · ".join(escape(fact) for fact in facts)
    return (
        f'<div class="q-run-top"><div class="q-run-title"><h1 class="q-h1">{escape(view.name)}</h1>{status_chip(view.status)}</div>'
        f"{_buttons(view)}</div>"
        f'<p class="q-small q-run-facts q-num">{line}</p>'
    )


def _phases(view: RunView) -> str:
    """Chips from download to save; done ones carry a tick, the present one its share."""
    never_began = view.phase is not None and view.phase.phase == "launch"
    if never_began or not (view.status.is_live or isinstance(view.ended, Failed)):
        return ""
    seen = [event.phase for event in view.timeline if isinstance(event, PhaseChanged) and view.started and event.time >= view.started.time]
    now = view.phase.phase if view.phase else "download"
    main = "train" if now in _INSIDE_TRAINING else now
    order = [phase for phase, _ in PHASES]
    place = order.index(main) if main in order else 0
    chips = []
    for number, (phase, label) in enumerate(PHASES):
        if phase == "download" and "download" not in seen and place > 0:
            continue
        if number < place:
            chips.append(f'<li class="q-phase q-phase-done"><span aria-hidden="true">✓</span> {label}<span class="q-sr">, done</span></li>')
        elif number == place:
            detail = _phase_detail(view, now)
            state = "failed" if isinstance(view.ended, Failed) else "now"
            sign = "✕" if state == "failed" else "●"
            chips.append(
                f'<li class="q-phase q-phase-{state}" aria-current="step"><span aria-hidden="true">{sign}</span> {label}'
                f"{f' <small>{escape(detail)}</small>' if detail and state == 'now' else ''}</li>"
            )
        else:
            chips.append(f'<li class="q-phase"><span aria-hidden="true">○</span> {label}</li>')
    return f'<ol class="q-phases" aria-label="Phases">{"".join(chips)}</ol>'


def _phase_detail(view: RunView, now: str) -> str:
    if now in _INSIDE_TRAINING:
        return _INSIDE_TRAINING[now]
    if view.phase is None:
        return ""
    share = format_percent(view.phase.progress) if view.phase.progress is not None and now != "train" else ""
    return " ".join(part for part in (share, view.phase.detail) if part)


def _progress(view: RunView) -> str:
    phases = _phases(view)
    if view.progress is None or view.status is Status.QUEUED:
        return phases
    percent = f"{view.progress * 100:.1f}"
    left = f"{format_duration(view.time_left_s)} left" if view.time_left_s is not None and view.status.is_live else ""
    words = " · ".join(part for part in (f"step {view.step:,} of {view.num_steps:,}", format_percent(view.progress), left) if part)
    bar = (
        f'<div class="q-progress" role="progressbar" aria-label="Steps" aria-valuemin="0" aria-valuemax="{view.num_steps}" '
        f'aria-valuenow="{view.step}" aria-valuetext="{escape(words)}"><i style="width:{percent}%"></i></div>'
    )
    line = "q-progress-line q-progress-live" if view.status.is_live else "q-progress-line"
    return f'<div class="{line}">{bar}<span class="q-small q-num q-progress-words">{escape(words)}</span></div>{phases}'


def _echo(view: RunView) -> str:
    """What was asked of the job and is not done yet: it stands here on every page, also after a reload."""
    if not view.status.is_live:
        return ""
    words = [request.promise() for request in view.pending]
    begun = view.started.time if view.started else 0.0
    last = view.timeline[-1] if view.timeline else None
    if not words and isinstance(last, RequestSeen) and last.time >= begun:
        words = [last.detail or (Request(last.request).promise() if last.request in list(Request) else "")]
    text = " ".join(word for word in words if word)
    return f'<p class="q-note q-note-live" role="status">{escape(text)}</p>' if text else ""


def _ending(view: RunView, is_held: bool, blocked_by: Holder | None) -> str:
    match view.ended:
        case Failed() as failed:
            return _failure(view, failed)
        case Finished() | Stopped() | Paused() as ended:
            return _end(view, ended)
    if view.status is Status.CRASHED:
        lost = "" if view.started else " Its journal holds nothing, as after a power cut; the curves are lost."
        return (
            '<div class="q-note q-note-warn" role="status"><strong>The app or the machine went down while this ran.</strong>'
            f"{lost} {escape(_kept(view))}</div>"
        )
    if _is_launched(view):
        words = (view.phase.detail if view.phase else "") or "Its own process is starting, which takes up to half a minute."
        return f'<p class="q-note q-note-live" role="status">{escape(words)}</p>'
    if view.status is Status.QUEUED:
        then = "It starts by itself."
        if is_held:
            then = "The queue is held: start it below."
        elif blocked_by is not None:
            then = f"It starts when {_END_WORDS.get(blocked_by.who, 'the memory is free')}."
        return f'<p class="q-note" role="status">Waits for its turn. {then}</p>'
    return ""


def _is_launched(view: RunView) -> bool:
    """Whether a process was started for it that has not begun, as where it waits for other machines."""
    return view.status is Status.QUEUED and view.phase is not None and view.phase.phase == "launch"


def _end(view: RunView, ended: Ended) -> str:
    took = f" in {format_duration(view.elapsed_s)}" if view.elapsed_s else ""
    first, last = (view.steps[0].loss, view.steps[-1].loss) if view.steps else (None, None)
    fell = ""
    if first is not None and last is not None and len(view.steps) > 1:
        fell = f"The loss, how far its words are from those of the rows, went from {first:.3g} to {last:.3g}{took}."
    if fell and view.best_eval:
        fell += f" On held-back rows, which it never saw, it is {view.best_eval.loss:.3g}."
    if isinstance(ended, Paused):
        held = ended.held_bytes
        free = " The memory is free: 0 bytes held by us." if held == 0 else f" {format_bytes(held)} still held." if held else ""
        paused = f"<strong>Paused after step {view.step:,}.</strong>{escape(free)} {escape(with_units(fell))}"
        ways = (("Chat with it so far", "chat"), ("Take it with you", "export"))
        links = " ".join(act_button(label, action, view.id, look="link") for label, action in ways) if view.has_checkpoint else ""
        return f'<div class="q-note" role="status">{paused} {links}</div>'
    if isinstance(ended, Stopped) and not ended.adapter:
        unbegun = "Taken out of the queue before it began." if view.started is None else "Stopped before its first step."
        what = unbegun if not view.steps else f"Stopped after step {view.step:,}. {_kept(view)}"
        return f'<div class="q-note" role="status">{escape(what)}</div>'
    title = "Done" if isinstance(ended, Finished) else f"Stopped after step {view.step:,}, what was learned is saved"
    reason = f" {ended.reason[:1].upper()}{ended.reason[1:]}." if isinstance(ended, Finished) and ended.reason != "all steps done" else ""
    steps = (
        act_button("Chat with it", "chat", view.id, look="primary q-button-large")
        + act_button("Check how good it is", "evaluate", view.id)
        + act_button("Take it with you", "export", view.id)
    )
    return (
        f'<div class="q-done" role="status"><div><h2 class="q-h2">{escape(title)}</h2>'
        f'<p class="q-sub">{escape(with_units(fell))}{escape(reason)}</p></div><div class="q-done-steps">{steps}</div></div>'
    )


def _failure(view: RunView, failed: Failed) -> str:
    """Cause before remedy, a button for each remedy, the traceback folded."""
    rest = sentences(failed.why, failed.fix)
    what = failed.what.rstrip(".") or "The run could not go on"
    buttons = []
    for number, suggestion in enumerate(failed.suggestions):
        changes = ", ".join(f"{label_of(path)} → {value}" for path, value in dict(suggestion.get("values", {})).items())
        label = str(suggestion.get("label") or changes)
        look = "" if number else "primary"
        button = act_button(
            "Apply and start again", "apply", view.id, look=look, number=str(number), title=f"Apply and start again: {label}"
        )
        small = f" <small>{escape(changes)}</small>" if changes and changes != label else ""
        buttons.append(f"<li>{button}<span>{escape(label)}{small}</span></li>")
    if failed.code == "resume-changed":
        again = act_button("New run from its adapter", "start_from", view.id, look="primary")
        buttons.append(f"<li>{again}<span>Goes on from what it has learned, with a new schedule</span></li>")
    fixes = f'<ul class="q-fixes">{"".join(buttons)}</ul>' if buttons else ""
    trace = ""
    if failed.traceback:
        trace = fold("Technical details", f'<pre class="q-trace">{escape(failed.traceback)}</pre>', f"trace-{view.id}")
    said = f"<strong>{escape(what)}.</strong> {escape(rest)} {escape(_kept(view))}"
    return f'<div class="q-note q-note-bad" role="alert">{said}{fixes}{trace}</div>'


def _buttons(view: RunView) -> str:
    run, buttons = view.id, []
    if view.status.is_live:
        buttons = _live_buttons(view)
    elif _is_launched(view):
        buttons.append(act_button("Stop", "stop", run, echo="Stopping …"))
    elif view.status is Status.QUEUED:
        buttons.append(act_button("Take out of the queue", "stop", run, echo="Taking it out …"))
    elif view.can_resume:
        look = "primary" if view.status in (Status.PAUSED, Status.CRASHED) else ""
        since = f"from step {view.saved_step:,}" if view.saved_step is not None else "from the start"
        label = f"Continue {since}" if view.started or view.status is Status.CRASHED else "Put it back into the queue"
        buttons.append(act_button(label, "resume", run, look=look, echo="Queued …"))
    if not view.status.is_live:
        buttons.append(act_button("New run from this one", "copy", run, look="quiet"))
    return f'<div class="q-buttons" role="group" aria-label="Control of the run">{"".join(buttons)}</div>'


def _live_buttons(view: RunView) -> list[str]:
    run, buttons = view.id, []
    if view.step:
        look = "" if Request.STOP in view.pending else "primary"
        buttons.append(
            act_button(
                "Stop and save",
                "stop",
                run,
                look=look,
                echo="Stopping …",
                confirm="Stop after this step? What it has learned is saved, and you can chat with it or continue later.",
                yes="Stop and save",
                no="Go on training",
            )
        )
        buttons.append(act_button("Pause", "pause", run, echo="Pausing …", title="Pause: save, free the memory, continue later"))
        buttons.append(act_button("Checkpoint now", "save_now", run, echo="Saving …"))
    buttons.append(
        act_button(
            "Stop now",
            "stop_now",
            run,
            look="danger",
            echo="Stopping …",
            danger="1",
            confirm=f"Stop at once? {_lost(view)}",
            yes="Stop now",
            no="Go on training",
        )
    )
    return buttons


def _lost(view: RunView) -> str:
    if not view.checkpoints:
        return "Nothing was saved yet, so everything it learned is lost." if view.step else "It has not learned anything yet."
    saved = view.checkpoints[-1].step
    since = view.step - saved
    return f"The checkpoint of step {saved:,} stays" + (f", the {since:,} steps since are lost." if since else ".")


def _queue(waiting: Sequence[RunView], is_held: bool, blocked_by: Holder | None) -> str:
    if not waiting:
        return ""
    rows = []
    for place, view in enumerate(waiting):
        moves = act_button("↑", "move", view.id, look="quiet", to=str(place - 1), title=f"Move {view.name} up") if place else ""
        rows.append(
            f'<span class="q-num">{place + 1}.</span> {act_button(view.name, "open", view.id, look="link")} {moves}'
            f"{act_button('Remove', 'unqueue', view.id, look='quiet', title=f'Take {view.name} out of the queue')}"
        )
    held = (
        f'<p class="q-small">The queue of the last visit is held. {act_button("Start the queue", "release", look="link")}</p>'
        if is_held
        else ""
    )
    block = f'<p class="q-small">{_blocked(blocked_by)}</p>' if blocked_by is not None else ""
    return f'<div class="q-queue"><h2 class="q-h3">Waiting</h2>{held}{block}{bullet_list(rows, "q-queue-rows")}</div>'


def _blocked(holder: Holder) -> str:
    """Who has the card, and what can be done: ask it to let go, or look how far it is."""
    if holder.can_free:
        return f"{escape(holder.sentence())} {act_button('Free the memory', 'free', look='link')}"
    then = f"The next run starts when {_END_WORDS.get(holder.who, 'it lets go')}."
    tab = _TABS.get(holder.who) if holder.run_id else None
    show = act_button("Show it", tab, holder.run_id, look="link") if tab else ""
    return f"{escape(holder.sentence())} {then} {show}"


def _kept(view: RunView) -> str:
    if view.problem:
        return "What was saved is kept." if view.has_checkpoint else ""
    if view.saved_step is not None:
        return f"The checkpoint of step {view.saved_step:,} is kept; Continue goes on from there."
    if view.checkpoints:
        return "Its checkpoints are gone; Continue starts from the beginning."
    return "No checkpoint was saved; Continue starts from the beginning." if view.started or view.status is Status.CRASHED else ""
