"""A run as everybody sees it: one picture, derived from its journal, the same for every page, command and restart.

A `RunReader` follows one journal and reads only what was appended since the last look, so a poll costs a few microseconds
and any number of pages can share it. `RunReaders` keeps one reader for each run of a workspace.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs.digest import LONG_POINTS, read_digest, write_digest
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
    RequestSeen,
    Started,
    StepLogged,
)
from qlora_ui.runs.journal import JournalReader
from qlora_ui.runs.picture import Picture
from qlora_ui.runs.run_dir import Request, RunDir, Status, status_after
from qlora_ui.runs.timing import seconds_left, seconds_per_step
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

MOST_POINTS = 1_000_000
"""Of the curves of runs that nobody looks at now; each takes some 300 bytes."""
OPEN_S = 20.0
"""A page looks at its run each second, one in the background each 15."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run at one moment. Everything is there to be drawn; nothing has to be read from the disk for it."""

    run: RunDir
    version: str
    """Changes when, and only when, something in this picture changed."""
    on_disk: str
    """`run.version_on_disk()` from before the files were read."""
    status: Status
    config: RunConfig | None
    """None where the settings file cannot be read; `problem` says why."""
    problem: str
    name: str
    notes: str
    tags: tuple[str, ...]
    created: float
    started: Started | None
    """Of the latest attempt."""
    planned: Planned | None
    phase: PhaseChanged | None
    steps: tuple[StepLogged, ...]
    """The training curve. Steps that a resumed run did again stand once."""
    evals: tuple[EvalLogged, ...]
    memory: tuple[MemoryMeasured, ...]
    checkpoints: tuple[CheckpointSaved, ...]
    """All that were saved; older ones may have been removed since."""
    probes: tuple[ProbeAnswered, ...]
    notices: tuple[Noticed | Healed, ...]
    requests: tuple[RequestSeen, ...]
    pending: tuple[Request, ...]
    """Asked for and not yet seen by the job."""
    timeline: tuple[Event, ...]
    """What happened, without points of curves: for the strip under the chart."""
    ended: Ended | None
    has_adapter: bool
    """Whether a result lies in the run's folder: also that of an earlier attempt, whatever the latest one comes to."""
    saved_step: int | None
    """Step of the newest checkpoint that lies there."""
    elapsed_s: float
    """Time in jobs, without the pauses between them."""
    time_left_s: float | None
    step_s: float | None
    peak_bytes: int | None
    """Highest memory so far: the allocator's peak on a card, the process's on a CPU."""
    peak_measured_bytes: int | None
    """The highest point of the memory line, which is what a prediction is for."""

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as anything tells: between two points of the curve (`output.log_every`) others do."""
        known = (self.steps[-1:], self.evals[-1:], self.checkpoints[-1:], (self.ended,) if self.ended else ())
        return max((event.step for events in known for event in events), default=0)

    @property
    def has_checkpoint(self) -> bool:
        """Whether what it has learned so far lies there, beside its result or without one."""
        return self.saved_step is not None

    @property
    def num_steps(self) -> int | None:
        return self.planned.num_steps if self.planned else None

    @property
    def progress(self) -> float | None:
        """Share of the steps that are done; None before the plan is known."""
        return min(self.step / self.num_steps, 1.0) if self.num_steps else None

    @property
    def best_eval(self) -> EvalLogged | None:
        """The check with the lowest loss."""
        return min(self.evals, key=lambda event: event.loss, default=None)

    @property
    def energy_j(self) -> float | None:
        """Energy of the card in the latest attempt."""
        return next((event.energy_j for event in reversed(self.memory) if event.energy_j is not None), None)

    @property
    def can_resume(self) -> bool:
        """Whether it can be continued: a job begins with the settings."""
        return self.status.can_resume and self.config is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return not self.status.is_live and self.status is not Status.QUEUED


class RunReader:
    """Follows one run; `view` gives the picture of now. Safe to share between threads.

    With `in_short` a long run that was read before is opened with fewer points of its curves (`runs.digest`); what is added to it later
    comes in full.
    """

    def __init__(self, run: RunDir, *, in_short: bool = False) -> None:
        self.run = run
        self._in_short = in_short
        self._points_in_short = 0
        """Points up to where the run is written in short."""
        self.looked_at = 0.0
        """Monotonic seconds; what keeps the readers sets it."""
        self._lock = threading.Lock()
        self._view: RunView | None = None
        self._reset()

    @property
    def num_points(self) -> int:
        """Points of its curves in memory."""
        return len(self._picture.steps) + len(self._picture.memory)

    @property
    def latest(self) -> RunView | None:
        """What `view` gave last."""
        return self._view

    def view(self) -> RunView:
        """The run now; the very same object as last time where nothing changed."""
        with self._lock:
            on_disk = self.run.version_on_disk()
            if self.run.journal_size() < self._journal.offset:
                self._reset()
            is_opened = not self._journal.offset
            if is_opened and self._in_short:
                self._open_in_short()
            status = self._read_on()
            if status is Status.CRASHED:
                # Its job may have written its last event and gone between the look at the journal and the look at the owner.
                status = self._read_on()
            if self._in_short and self.num_points - self._points_in_short > LONG_POINTS and (is_opened or not status.is_live):
                self._points_in_short = self.num_points
                write_digest(self.run.journal_path, self._journal.offset)
            pending = tuple(self.run.pending_requests()) if status.is_live else ()
            version = f"{self._journal.offset}.{status}.{'.'.join(pending)}.{on_disk}"
            # Time passes even where nothing is written: a live run's clock is drawn anew every second.
            if status.is_live:
                version += f".{int(time.time())}"
            if self._view is None or self._view.version != version:
                self._view = self._draw(version, on_disk, status, pending)
            return self._view

    def _read_on(self) -> Status:
        for event in self._journal.read():
            self._picture.add(event)
        return status_after(self._picture.state, self.run.owner_is_alive, has_plan=self._has_plan())

    def _reset(self) -> None:
        self._points_in_short = 0
        self._journal: JournalReader = JournalReader(self.run.journal_path)
        self._picture: Picture = Picture()
        self._view = None
        self._config: RunConfig | None = None
        self._config_version = 0
        self._problem = ""

    def _has_plan(self) -> bool:
        started, planned = self._picture.started, self._picture.planned
        return started is not None and planned is not None and planned.time >= started.time

    def _open_in_short(self) -> None:
        found = read_digest(self.run.journal_path)
        if found is not None:
            events, end = found
            for event in events:
                self._picture.add(event)
            self._journal = JournalReader(self.run.journal_path, end)
            self._points_in_short = self.num_points

    def _draw(self, version: str, on_disk: str, status: Status, pending: tuple[Request, ...]) -> RunView:
        settings = self.run.settings_version()
        if self._config is None or self._config_version != settings:
            self._config_version = settings
            try:
                self._config, self._problem = self.run.config(), ""
            except QloraUiError as error:
                self._config, self._problem = None, str(error)
        picture, about, now = self._picture, self.run.about(), time.time()
        output = self._config.output if self._config else None
        # A power cut may have taken the lines that tell of checkpoints; most runs without any need no look at the disk.
        is_told = picture.checkpoints or (picture.started is not None and picture.started.resumed_from)
        may_have_saved = bool(is_told or picture.state is None or status is Status.CRASHED)
        left = None
        if status is Status.RUNNING and picture.planned:
            left = seconds_left(picture.planned, picture.steps, picture.evals, picture.checkpoints, picture.probes, now=now)
        return RunView(
            run=self.run,
            version=version,
            on_disk=on_disk,
            status=status,
            config=self._config,
            problem=self._problem,
            name=self.run.name(self._config),
            notes=str(about.get("notes", output.notes if output else "")),
            tags=tuple(map(str, about.get("tags", output.tags if output else ()))),
            created=picture.created or self.run.made_at,
            started=picture.started,
            planned=picture.planned,
            phase=picture.phase,
            steps=tuple(picture.steps),
            evals=tuple(picture.evals),
            memory=tuple(picture.memory),
            checkpoints=tuple(picture.checkpoints),
            probes=tuple(picture.probes),
            notices=tuple(picture.notices),
            requests=tuple(picture.requests),
            pending=pending,
            timeline=tuple(picture.timeline),
            ended=picture.ended,
            has_adapter=self.run.has_adapter,
            saved_step=next(iter(self.run.saved_steps()), None) if may_have_saved else None,
            elapsed_s=picture.elapsed_s(now, status.is_live),
            time_left_s=left,
            step_s=seconds_per_step(picture.steps),
            peak_bytes=picture.peak_bytes or None,
            peak_measured_bytes=picture.peak_measured_bytes or None,
        )


_MOMENT: ContextVar[dict[str, RunView] | None] = ContextVar("moment", default=None)


class RunReaders:
    """One reader for each run of a workspace that was looked at lately; what all pages of an app share."""

    def __init__(self, workspace: Workspace, keep: int = 64, most_points: int = MOST_POINTS) -> None:
        self._workspace = workspace
        self._keep, self._most_points = keep, most_points
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, RunReader] = OrderedDict()

    @contextlib.contextmanager
    def in_one_moment(self, pictures: dict[str, RunView]) -> Iterator[None]:
        """Within the block a run looks the same however often it is looked at; `pictures` keeps how, for further blocks."""
        before = _MOMENT.set(pictures)
        try:
            yield
        finally:
            _MOMENT.reset(before)

    @property
    def moment(self) -> dict[str, RunView] | None:
        """The pictures of the block that this is called in; None outside of any."""
        return _MOMENT.get()

    def latest(self, run_id: str) -> RunView | None:
        """How the run was when somebody last looked, without a look at the disk; None where nobody did lately."""
        with self._lock:
            reader = self._readers.get(run_id)
        return reader.latest if reader is not None else None

    def view(self, run: RunDir) -> RunView:
        """The run now."""
        pictures = _MOMENT.get()
        if pictures is None:
            return self._view_of_now(run)
        known = pictures.get(run.id)
        return known if known is not None else pictures.setdefault(run.id, self._view_of_now(run))

    def _view_of_now(self, run: RunDir) -> RunView:
        with self._lock:
            reader = self._readers.get(run.id)
            is_new = reader is None
            if reader is None:
                reader = self._readers[run.id] = RunReader(run, in_short=True)
            reader.looked_at = time.monotonic()
            self._readers.move_to_end(run.id)
        view = reader.view()
        if is_new:
            self._forget_oldest()
        return view

    def _forget_oldest(self) -> None:
        """Runs of many steps count for what they take, but for those that a page looks at: they would be read again each second."""
        with self._lock:
            points = sum(reader.num_points for reader in self._readers.values())
            for run_id, reader in list(self._readers.items()):
                is_open = time.monotonic() - reader.looked_at < OPEN_S
                if len(self._readers) <= self._keep and (points <= self._most_points or is_open):
                    return
                points -= reader.num_points
                del self._readers[run_id]


def read_run(run: RunDir) -> RunView:
    """The run now, read from the start; those who look more than once keep a RunReader."""
    return RunReader(run).view()
