"""The figures of a run at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qlora_ui.base.units import format_bytes, format_count, format_duration
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.runs.read import RunView
from qlora_ui.ui.markup import escape, with_units

JOULES_PER_WH = 3600.0


def tiles_html(view: RunView | None, gpus: Sequence[GpuState] = ()) -> str:
    """Step, loss, speed, time, memory, power; empty before a run."""
    if view is None or view.started is None:
        return ""
    tiles = [_step(view), _loss(view), _speed(view), _time(view), _memory(view)]
    if power := _power(view, gpus):
        tiles.append(power)
    return f'<dl class="q-tiles">{"".join(tiles)}</dl>'


def _tile(label: str, value: str, note: str = "", css_class: str = "") -> str:
    small = f'<dd class="q-tile-note q-num">{escape(with_units(note))}</dd>' if note else ""
    return f'<div class="q-tile {css_class}"><dt>{escape(label)}</dt><dd class="q-tile-value">{escape(with_units(value))}</dd>{small}</div>'


def _step(view: RunView) -> str:
    of = f"of {view.num_steps:,}" if view.num_steps else ""
    if view.steps and view.steps[-1].epoch:
        of += f", pass {max(1, math.ceil(view.steps[-1].epoch))}"
    return _tile("Step", f"{view.step:,}", of)


def _loss(view: RunView) -> str:
    if not view.steps:
        return _tile("Loss", "–")
    recent = [event.loss for event in view.steps[-10:]]
    best = view.best_eval
    note = f"held-back {best.loss:.3g}" if best else f"first {view.steps[0].loss:.3g}"
    return _tile("Loss, last ten", f"{sum(recent) / len(recent):.3g}", note)


def _speed(view: RunView) -> str:
    if not view.steps:
        return _tile("Tokens/s", "–")
    recent = [event.tokens_per_s for event in view.steps[-10:] if event.tokens_per_s]
    speed = view.ended.tokens_per_s if view.ended and view.ended.tokens_per_s else sum(recent) / len(recent) if recent else 0.0
    note = f"{format_duration_short(view.step_s)} a step" if view.step_s else ""
    return _tile("Tokens/s", format_count(speed) if speed >= 100 else f"{speed:.3g}", note)


def _time(view: RunView) -> str:
    if view.status.is_live:
        if view.time_left_s is None:
            return _tile("Time left", "–", "known after a few steps")
        return _tile("Time left", format_duration(view.time_left_s), f"{format_duration(view.elapsed_s)} so far")
    predicted = view.planned.predicted_s if view.planned else None
    return _tile("Time", format_duration(view.elapsed_s), f"predicted {format_duration(predicted)}" if predicted else "")


def _memory(view: RunView) -> str:
    predicted = view.planned.predicted_bytes if view.planned else None
    measured = view.peak_measured_bytes
    if not measured:
        return _tile("Peak memory", "–", f"predicted {format_bytes(predicted)}" if predicted else "not measured yet", "q-tile-wide")
    # Each process measures itself, and one writes it down.
    shared = f", in one of {view.planned.num_processes} processes" if view.planned and view.planned.num_processes > 1 else ""
    if predicted and measured > 1.1 * predicted and view.started and (view.started.launcher, view.started.device) == ("thread", "CPU"):
        # A processor's memory can only be told for the app as a whole: a chat beside the run is in it, and whatever the pages read.
        return _tile(
            "Peak memory", format_bytes(measured), f"of the whole app; {format_bytes(predicted)} predicted for the run", "q-tile-wide"
        )
    note = f"predicted {format_bytes(predicted)} ({round((measured - predicted) / predicted * 100):+d} %)" if predicted else "measured"
    return _tile("Peak memory", format_bytes(measured), f"{note}{shared}", "q-tile-wide")


def _power(view: RunView, gpus: Sequence[GpuState]) -> str:
    live = next((gpu.power_w for gpu in gpus if gpu.power_w is not None), None) if view.status.is_live else None
    power = live if live is not None else next((event.power_w for event in reversed(view.memory) if event.power_w is not None), None)
    energy = view.energy_j
    if power is None and energy is None:
        return ""
    note = f"{energy / JOULES_PER_WH:.3g} Wh so far" if energy else ""
    if view.status.is_live and power is not None:
        return _tile("Power", f"{power:.0f} W", note)
    return _tile("Energy", f"{energy / JOULES_PER_WH:.3g} Wh") if energy else ""


def format_duration_short(seconds: float) -> str:
    """A duration below a minute with a useful digit: `0.4 s`, `12 s`."""
    return f"{seconds:.2g} s" if seconds < 10 else format_duration(seconds)
