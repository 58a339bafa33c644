"""What a job is at, said on its journal, and whether it is to go on."""

from __future__ import annotations

import time
from collections.abc import Callable

from qlora_ui.engine.callbacks import END, RequestDesk
from qlora_ui.engine.failures import StopRun
from qlora_ui.runs.events import Event, PhaseChanged

PROGRESS_EVERY_S = 0.5


class Phases:
    """The present phase of a job, its progress, and the place where a wish to end is noticed between steps."""

    def __init__(self, desk: RequestDesk, write: Callable[[Event], object]) -> None:
        self._desk = desk
        self._write = write
        self._name = ""
        self._said_at = 0.0
        self.agree: Callable[[int], int] = int
        """How the processes of the run come to the same number, once they have met: `callbacks.agreement`."""

    def enter(self, phase: str) -> None:
        """Begin a phase; the one that it is in already goes on."""
        if phase != self._name:
            self._name = self._desk.phase = phase
            self._write(PhaseChanged(phase=phase))

    def progress(self, what: str, share: float | None) -> None:
        """How far the phase is, on the journal not more often than a page asks."""
        now = time.monotonic()
        if now - self._said_at >= PROGRESS_EVERY_S or share == 1.0:
            self._said_at = now
            self._write(PhaseChanged(phase=self._name, progress=share, detail=what))

    def is_cancelled(self) -> bool:
        """Whether the run is to end, by a look at what was asked."""
        self._desk.look()
        return self._desk.wants_end

    def raise_if_ending(self) -> None:
        """Raise StopRun where it is, in all processes or in none: one that went on alone would wait for the others."""
        self._desk.look()
        if self._desk.agreed(self.agree, END):
            raise StopRun
