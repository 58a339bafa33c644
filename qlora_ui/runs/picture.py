"""What a journal said so far, event by event: what a RunReader keeps of a run and makes a RunView of."""

from __future__ import annotations

from dataclasses import dataclass, field

from qlora_ui.runs.events import (
    CheckpointSaved,
    Ended,
    EvalLogged,
    Event,
    Healed,
    MemoryMeasured,
    Noticed,
    PhaseChanged,
    Planned,
    ProbeAnswered,
    Queued,
    RequestSeen,
    Started,
    StepLogged,
)


@dataclass
class Picture:
    """What a journal said so far; grows in place and is copied into a RunView."""

    created: float = 0.0
    state: Event | None = None
    started: Started | None = None
    planned: Planned | None = None
    phase: PhaseChanged | None = None
    ended: Ended | None = None
    steps: list[StepLogged] = field(default_factory=list)
    evals: list[EvalLogged] = field(default_factory=list)
    memory: list[MemoryMeasured] = field(default_factory=list)
    checkpoints: list[CheckpointSaved] = field(default_factory=list)
    probes: list[ProbeAnswered] = field(default_factory=list)
    notices: list[Noticed | Healed] = field(default_factory=list)
    requests: list[RequestSeen] = field(default_factory=list)
    timeline: list[Event] = field(default_factory=list)
    earlier_s: float = 0.0
    """Time in attempts before the present one."""
    latest: float = 0.0
    peak_bytes: int = 0
    peak_measured_bytes: int = 0

    def add(self, event: Event) -> None:
        """Take the next event of the journal."""
        if isinstance(event, Queued | Started):
            # Before `latest` moves on: the time since the last event was a crash or a pause.
            self._close_attempt()
        self.latest = max(self.latest, event.time)
        match event:
            case Queued():
                self.created = self.created or event.time
                self.state, self.ended, self.phase = event, None, None
            case Started():
                self.state, self.ended, self.started = event, None, event
                self._rewind(event.resumed_from or 0)
            case Ended():
                self.state = self.ended = event
            case Planned():
                self.planned = event
            case PhaseChanged():
                if self.phase is None or self.phase.phase != event.phase:
                    self.timeline.append(event)
                self.phase = event
                return
            case StepLogged():
                self.steps.append(event)
                return
            case EvalLogged():
                self.evals.append(event)
            case MemoryMeasured():
                self.memory.append(event)
                # Counted as they come: long runs have a hundred thousand, and a page asks each second.
                self.peak_bytes = max(self.peak_bytes, event.peak_allocated_bytes or event.process_bytes or 0)
                self.peak_measured_bytes = max(self.peak_measured_bytes, event.measured_bytes or 0)
                return
            case CheckpointSaved():
                self.checkpoints.append(event)
            case ProbeAnswered():
                self.probes.append(event)
            case Noticed() | Healed():
                self.notices.append(event)
            case RequestSeen():
                self.requests.append(event)
        self.timeline.append(event)

    def elapsed_s(self, now: float, is_live: bool) -> float:
        """Time in jobs up to `now` (Unix seconds), or up to the last event where none works on it."""
        if self.started is None:
            return 0.0
        return self.earlier_s + (self._attempt_s(now if is_live else self.latest) if not isinstance(self.state, Queued) else 0.0)

    def _close_attempt(self) -> None:
        if self.started is not None and not isinstance(self.state, Queued):
            self.earlier_s += self._attempt_s(self.latest)

    def _attempt_s(self, end: float) -> float:
        """Time of the present attempt, up to `end` where it has no end of its own."""
        assert self.started is not None
        if self.ended and self.ended.duration_s:
            # The job's own clock, which nobody sets: the wall's may learn the right date in the middle of a run.
            return self.ended.duration_s
        return max((self.ended.time if self.ended else end) - self.started.time, 0.0)

    def _rewind(self, step: int) -> None:
        """Steps after a checkpoint that is taken up again are done once more and must not be drawn twice."""
        for points in (self.steps, self.evals, self.probes, self.checkpoints):
            while points and points[-1].step > step:
                points.pop()
