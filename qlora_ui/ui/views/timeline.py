"""What happened in a run, newest last: phases, checkpoints, checks, warnings, heals, requests, ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qlora_ui.base.errors import sentences
from qlora_ui.base.units import format_bytes, format_duration
from qlora_ui.runs.events import (
    CheckpointSaved,
    EvalLogged,
    Event,
    Failed,
    Finished,
    Healed,
    Noticed,
    Paused,
    PhaseChanged,
    Planned,
    ProbeAnswered,
    Queued,
    RequestSeen,
    Started,
    Stopped,
)
from qlora_ui.runs.read import RunView
from qlora_ui.settings.run_config import label_of
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.words import fold

SHOWN = 10
MOST = 400

_PHASES = {
    "launch": "Starting a process of its own",
    "download": "Getting the model",
    "load": "Loading the model in 4-bit",
    "data": "Preparing the rows",
    "check": "Trying the longest rows, to be sure that they fit",
    "train": "Training",
    "finish": "Saving the result",
}


def timeline_html(view: RunView | None) -> str:
    """The strip of events; the older ones folded. Empty before a run."""
    if view is None:
        return ""
    start = min((event.time for event in view.timeline if not isinstance(event, Queued)), default=view.created)
    rows = [row for event in _without_repeats(view.timeline[-MOST:]) if (row := _row(event, start))]
    if not rows:
        return ""
    older, newer = rows[:-SHOWN], rows[-SHOWN:]
    folded = fold(f"{len(older)} earlier", f'<ol class="q-timeline">{"".join(older)}</ol>', "timeline") if older else ""
    shown = f'<ol class="q-timeline">{"".join(newer)}</ol>'
    return f'<section class="q-card"><h2 class="q-h2">What happened</h2>{folded}{shown}</section>'


def _without_repeats(events: Sequence[Event]) -> Iterator[Event]:
    """The events without the phase that a run is in again, as training is after each answer to the probe questions."""
    phase = ""
    for event in events:
        if isinstance(event, Started):
            phase = ""
        if isinstance(event, PhaseChanged) and event.phase in _PHASES:
            if event.phase == phase:
                continue
            phase = event.phase
        yield event


def _row(event: Event, start: float) -> str:
    said = _say(event)
    if said is None:
        return ""
    kind, sign, what, more = said
    after = format_duration(max(event.time - start, 0))
    step = f"step {event.step:,}" if event.step else ""
    detail = f' <span class="q-small">{escape(more)}</span>' if more else ""
    return (
        f'<li class="q-event q-event-{kind}"><span class="q-event-sign" aria-hidden="true">{sign}</span>'
        f'<span class="q-event-time q-num">{escape(after)}</span><span class="q-event-step q-num">{step}</span>'
        f"<span>{escape(what)}{detail}</span></li>"
    )


def _say(event: Event) -> tuple[str, str, str, str] | None:
    """Kind, sign, sentence and small print; None for what is not worth a line."""
    match event:
        case Queued():
            return "plain", "…", "Put into the queue", ""
        case Started():
            again = f", from the checkpoint of step {event.resumed_from:,}" if event.resumed_from else ""
            return "plain", "▸", f"Started on {event.device}{again}", ""
        case PhaseChanged():
            return ("plain", "▸", _PHASES[event.phase], "") if event.phase in _PHASES else None
        case Planned():
            lost = (f"{count} {word}" for count, word in ((event.truncated_rows, "cut"), (event.dropped_rows, "left out")) if count)
            fast = f"fast path: {', '.join(event.fast_path)}" if event.fast_path else "; ".join(event.fast_path_reasons)
            said = ", ".join(lost)
            what = f"{event.rows_in_words()} to learn from, {event.num_held_back:,} held back"
            return "plain", "▸", f"{what}{f', {said}' if said else ''}", fast
        case EvalLogged():
            return "check", "◇", f"Held-back rows: loss {event.loss:.3g}{', the best so far' if event.is_best else ''}", ""
        case CheckpointSaved():
            return "save", "▲", f"Checkpoint saved{', the best so far' if event.is_best else ''}", format_bytes(event.num_bytes)
        case Noticed():
            rest = sentences(event.why, event.fix)
            return ("warn", "!", event.what, rest) if event.level == "warning" else ("plain", "i", event.what, rest)
        case Healed():
            changes = ", ".join(f"{label_of(path)} {old} → {new}" for path, (old, new) in event.changes.items())
            return "heal", "+", event.what, changes
        case RequestSeen():
            return "plain", "›", event.detail or f"Asked to {event.request.replace('_', ' ')}", ""
        case ProbeAnswered():
            return None
        case Finished():
            return "done", "✓", "Done" if event.reason == "all steps done" else f"Done: {event.reason}", ""
        case Paused():
            return "plain", "‖", "Paused, memory freed", ""
        case Stopped():
            return "plain", "■", "Stopped and saved" if event.adapter else "Stopped", ""
        case Failed():
            return "bad", "✕", event.what, ""
    return None
