"""The curves of a run: what is new since a cursor, and each curve in a sentence for those who do not see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_ui.base.units import format_bytes, format_duration
from qlora_ui.runs.events import CheckpointSaved, EvalLogged, MemoryMeasured, StepLogged
from qlora_ui.runs.read import RunView

MOST_POINTS = 20_000
"""Longer curves are sent thinned to about this many points when a page opens; what follows comes in full."""
MOST_MARKS = 60
"""Checkpoints on the axis."""
LONGEST_GAP_S = 30.0
"""Longer silences in the memory line are pauses between two attempts and take no room on the axis."""


def new_points(view: RunView, cursor: dict[str, Any] | None) -> dict[str, Any]:
    """The points added since `cursor` (what the last answer carried; None for all), as the chart wants them.

    `reset` says that the curve was rewound, as a resumed run does, and what is sent replaces everything.
    """
    counts = {"steps": len(view.steps), "evals": len(view.evals), "memory": len(view.memory)}
    before = _checked(view, cursor)
    steps = view.steps[before["steps"] :]
    stride = max(1, len(steps) // MOST_POINTS)
    steps = steps[::stride]
    numbers = [event.step for event in steps]
    gradients = [event for event in steps if event.grad_norm is not None]
    evals, memory = view.evals[before["evals"] :], view.memory[before["memory"] :]
    times, used, clock = _memory_line(memory, before["clock"], before["last_time"])
    return {
        "id": view.id,
        "reset": before["is_new"],
        "cursor": {**counts, "mark": _mark(view, counts), "clock": clock, "last_time": memory[-1].time if memory else before["last_time"]},
        "series": {
            "loss": {"x": numbers, "y": [_short(event.loss) for event in steps]},
            "rate": {"x": numbers, "y": [_short(event.learning_rate) for event in steps]},
            "gradient": {"x": [event.step for event in gradients], "y": [_short(event.grad_norm or 0.0) for event in gradients]},
            "speed": {"x": numbers, "y": [_short(event.tokens_per_s) for event in steps]},
            "eval": {"x": [event.step for event in evals], "y": [_short(event.loss) for event in evals]},
            "memory": {"x": times, "y": used},
        },
        "rules": {"predicted": view.planned.predicted_bytes if view.planned else None},
        "end": {"live": view.status.is_live, "over": view.is_over, "planned": view.num_steps, "last": view.step},
        "marks": [{"step": event.step, "kind": "best" if event.is_best else "save"} for event in _thin(view.checkpoints)],
        "text": curve_texts(view),
    }


def goes_on(view: RunView, cursor: Any) -> bool:
    """Whether `new_points` would give only what was added since the cursor."""
    return not _checked(view, cursor)["is_new"]


def curve_texts(view: RunView) -> dict[str, str]:
    """Every chart in a sentence: where it starts, where it is, where it was best."""
    texts = {}
    if view.steps:
        first, last = view.steps[0], view.steps[-1]
        texts["loss"] = f"Training loss went from {first.loss:.3g} at step {first.step} to {last.loss:.3g} at step {last.step}."
        texts["rate"] = f"The learning rate is {last.learning_rate:.1e} at step {last.step}."
        texts["speed"] = f"{last.tokens_per_s:.0f} tokens per second at step {last.step}."
        if last.grad_norm is not None:
            texts["gradient"] = f"The gradient norm is {last.grad_norm:.3g} at step {last.step}."
    if best := view.best_eval:
        texts["loss"] = f"{texts.get('loss', '')} Loss on held-back rows was best at step {best.step} with {best.loss:.3g}.".strip()
    if peak := view.peak_measured_bytes:
        predicted = view.planned.predicted_bytes if view.planned else None
        against = f"; {format_bytes(predicted)} were predicted" if predicted else ""
        texts["memory"] = f"At most {format_bytes(peak)} measured in {format_duration(view.elapsed_s)}{against}."
    return texts


def _checked(view: RunView, cursor: dict[str, Any] | None) -> dict[str, Any]:
    """The cursor if it still points into this curve, else one that points to its start. Cursors come from pages: trust none."""
    start: dict[str, Any] = {"steps": 0, "evals": 0, "memory": 0, "clock": 0.0, "last_time": None, "is_new": True}
    if not isinstance(cursor, dict):
        return start
    try:
        counts = {name: int(cursor[name]) for name in ("steps", "evals", "memory")}
        clock = float(cursor["clock"])
        last_time = None if cursor["last_time"] is None else float(cursor["last_time"])
    except (KeyError, TypeError, ValueError):
        return start
    lengths = {"steps": len(view.steps), "evals": len(view.evals), "memory": len(view.memory)}
    if any(not 0 <= count <= lengths[name] for name, count in counts.items()) or cursor.get("mark") != _mark(view, counts):
        return start
    return {**counts, "clock": clock, "last_time": last_time, "is_new": False}


def _mark(view: RunView, counts: dict[str, int]) -> str:
    """Names the last points behind a cursor; another one means that the run was rewound and wrote them anew."""
    curves: tuple[Sequence[StepLogged | EvalLogged | MemoryMeasured], ...] = (view.steps, view.evals, view.memory)
    return ".".join(f"{curve[count - 1].time:.3f}" if count else "-" for count, curve in zip(counts.values(), curves, strict=True))


def _memory_line(events: Sequence[MemoryMeasured], clock: float, last_time: float | None) -> tuple[list[float], list[int], float]:
    """Seconds since the start without long pauses, bytes, and the seconds at the end."""
    times, used = [], []
    for event in events:
        gap = event.time - last_time if last_time is not None else 0.0
        clock += gap if 0 <= gap <= LONGEST_GAP_S else 1.0 if gap > 0 else 0.0
        last_time = event.time
        size = event.measured_bytes
        if size is not None:
            times.append(round(clock, 1))
            used.append(size)
    return times, used, clock


def _thin(events: Sequence[CheckpointSaved]) -> Sequence[CheckpointSaved]:
    return events if len(events) <= MOST_MARKS else [*events[:: len(events) // MOST_MARKS], events[-1]]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
