"""How long a run still takes, from what it has measured: steps, checks, saves and probe answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from qlora_ui.runs.events import CheckpointSaved, EvalLogged, Planned, ProbeAnswered, StepLogged

RECENT_STEPS = 30
"""Steps that the pace is taken from: enough for a steady figure, few enough to follow a card that slows down."""


def seconds_per_step(steps: Sequence[StepLogged]) -> float | None:
    """Median of the recent steps; None before the second step, since the first pays for warming up."""
    times = [event.step_s for event in steps[-RECENT_STEPS:] if event.step_s > 0]
    return median(times[1:] if len(times) > 1 and len(steps) <= RECENT_STEPS else times) if len(times) > 1 else None


def seconds_left(
    planned: Planned,
    steps: Sequence[StepLogged],
    evals: Sequence[EvalLogged],
    saves: Sequence[CheckpointSaved],
    probes: Sequence[ProbeAnswered],
    *,
    now: float,
) -> float | None:
    """Seconds until the last step is done, with checks, saves and probes still to come; None where nothing is measured yet."""
    pace = seconds_per_step(steps)
    if pace is None:
        return None
    done = steps[-1].step
    total = max(planned.num_steps - done, 0) * pace
    total += _still_to_come(done, planned.num_steps, planned.eval_every) * _mean([event.duration_s for event in evals])
    total += _still_to_come(done, planned.num_steps, planned.save_every) * _mean([event.duration_s for event in saves])
    questions = len({event.prompt for event in probes})
    total += _still_to_come(done, planned.num_steps, planned.probe_every) * questions * _mean([event.duration_s for event in probes])
    since = now - steps[-1].time
    return max(total - max(since, 0.0), 0.0)


def _still_to_come(done: int, num_steps: int, every: int) -> int:
    """How often something that happens every n steps, and at the last one, still happens after `done` steps."""
    if every <= 0 or done >= num_steps:
        return 0
    return num_steps // every - done // every + (1 if num_steps % every else 0)


def _mean(values: Sequence[float]) -> float:
    recent = values[-10:]
    return sum(recent) / len(recent) if recent else 0.0
