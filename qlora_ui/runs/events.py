"""What can happen in a run. A job appends these to its journal; everybody else only reads them.

Plain dataclasses: they are written in the training loop, where nothing needs validating. A new event is a new class here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import orjson

from qlora_ui.base.units import format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `time` is Unix seconds, `step` the optimizer steps done by then."""

    time: float = 0.0
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued(Event):
    """The run was created and waits for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """A job took the run; written again at every resume."""

    pid: int
    process_started: float
    """Start time of that process (psutil), since pids are used again."""
    host: str
    launcher: str
    versions: dict[str, str]
    device: str
    """Name of the card, or `CPU`."""
    resumed_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged(Event):
    """The job went on to: download, load, data, check, train, evaluate, probe, save, finish; before those, a process is started: launch."""

    phase: str
    progress: float | None = None
    """Done share of the phase, 0 to 1, where it is known."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Event):
    """What the run will do, known once the data is tokenized."""

    num_steps: int
    num_train_rows: int
    num_eval_rows: int
    num_train_tokens: int
    num_trained_tokens: int
    """Tokens with a label, a pass."""
    effective_batch: int
    trainable_params: int
    total_params: int
    predicted_bytes: int | None = None
    predicted_s: float | None = None
    packed: bool = False
    fast_path: tuple[str, ...] = ()
    """Parts of the fast path that are on; empty on the plain one."""
    fast_path_reasons: tuple[str, ...] = ()
    """Why a part is off, in words."""
    dropped_rows: int = 0
    truncated_rows: int = 0
    eval_every: int = 0
    """Steps between checks; 0 where nothing is held back."""
    save_every: int = 0
    probe_every: int = 0
    """Steps between answers to the probe questions; 0 where there are none."""
    num_processes: int = 1
    num_conversations: int = 0
    """Rows of the data that share the training rows where they are packed; 0 where each has its own."""
    num_eval_conversations: int = 0

    def rows_in_words(self) -> str:
        """What is learned from, as `940 rows`, or `940 conversations in 85 rows`."""
        rows = f"{format_count(self.num_train_rows)} {'row' if self.num_train_rows == 1 else 'rows'}"
        return f"{format_count(self.num_conversations)} conversations in {rows}" if self.num_conversations else rows

    @property
    def num_held_back(self) -> int:
        """Rows of the data that are kept from training."""
        return self.num_eval_conversations or self.num_eval_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLogged(Event):
    """A point of the curves."""

    loss: float
    learning_rate: float
    grad_norm: float | None = None
    epoch: float = 0.0
    tokens: int = 0
    """Trained tokens since the start of the run, over resumes."""
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    accuracy: float | None = None
    """Share of trained tokens that the model would have chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalLogged(Event):
    """A check on the held-back rows."""

    loss: float
    accuracy: float | None = None
    duration_s: float = 0.0
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMeasured(Event):
    """Memory as the allocator and the driver see it; None where nobody could say."""

    allocated_bytes: int | None
    reserved_bytes: int | None
    peak_allocated_bytes: int | None
    process_bytes: int | None
    """NVML's figure for this process; on a CPU by how much its resident memory has grown since the run began."""
    device_used_bytes: int | None
    device_total_bytes: int | None
    power_w: float | None = None
    utilization_pct: float | None = None
    temperature_c: float | None = None
    energy_j: float | None = None
    """Energy of the card since the start of this job."""
    peak_reserved_bytes: int | None = None
    """The most that torch's allocator has held of the card, used or kept for reuse."""
    at: str = "step"
    """`dry-run`, `step` or `end`: only these are compared with the prediction; `tick` is a point of the live line."""

    @property
    def measured_bytes(self) -> int | None:
        """What the process takes of the card (NVML), or of the machine on a CPU; the allocator's figure where nobody else knows."""
        return self.process_bytes or self.reserved_bytes or self.allocated_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is whole on the disk."""

    path: str
    """Relative to the run directory."""
    num_bytes: int
    duration_s: float
    is_best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswered(Event):
    """The model answered one of the user's probe questions."""

    prompt: str
    answer: str
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed(Event):
    """Something the user should know; the run goes on."""

    level: str
    """`info` or `warning`."""
    code: str
    what: str
    why: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed(Event):
    """The job mended itself, for example after running out of memory."""

    what: str
    changes: dict[str, list[Any]]
    """Option path to [old, new]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSeen(Event):
    """The job saw a request (stop, stop_now, pause, save_now) and says when it will be done."""

    request: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Event):
    """Base of the last event of a job; `adapter` is where the result lies, relative to the run directory."""

    duration_s: float = 0.0
    adapter: str | None = None
    final_loss: float | None = None
    best_eval_loss: float | None = None
    tokens_per_s: float = 0.0
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Ended):
    """All steps are done (or early stopping was satisfied)."""

    reason: str = "all steps done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Ended):
    """The user stopped it; what was learned is kept where `adapter` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Ended):
    """The user paused it: saved, unloaded, waiting for Continue."""

    held_bytes: int | None = None
    """Memory of the card still held by us, measured after unloading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Ended):
    """It could not go on."""

    code: str = "bug"
    what: str = ""
    why: str = ""
    fix: str = ""
    traceback: str = ""
    suggestions: list[dict[str, Any]] = field(default_factory=list)
    """Changes that would help: `{"label": …, "values": {option path: value}}`, each with an Apply button."""


def _kinds_of(hint: Any) -> tuple[type, ...]:
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = tuple(get_origin(part) or part for part in parts)
    return (*kinds, int, float) if {int, float}.intersection(kinds) else kinds


_CLASSES: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        Queued,
        Started,
        PhaseChanged,
        Planned,
        StepLogged,
        EvalLogged,
        MemoryMeasured,
        CheckpointSaved,
        ProbeAnswered,
        Noticed,
        Healed,
        RequestSeen,
        Finished,
        Stopped,
        Paused,
        Failed,
    )
}

_KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    word: {name: _kinds_of(hint) for name, hint in get_type_hints(cls).items()} for word, cls in _CLASSES.items()
}
"""What may stand in each field; a number is a number, whether it has a point or not."""


def to_line(event: Event) -> str:
    """The event as one line of JSON, without the line's end."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}, ensure_ascii=False, separators=(",", ":"))


NO_TIME = 253_370_764_800.0
"""Seconds from 1970 to the year 9999."""


def from_line(line: str | bytes) -> Event | None:
    """The event in a line; None for a line that is broken or from a newer version."""
    try:
        values = _values(line)
        word = values.pop("event")
        cls = _CLASSES.get(word)
        if cls is None:
            return None
        if not 0 <= values.get("time", 0.0) < NO_TIME:  # damaged; no calendar writes it, and one such line would end all lists of runs
            values["time"] = 0.0
        if cls is Planned:
            values |= {name: tuple(value) for name, value in values.items() if name.startswith("fast_path")}
        known = _known(word, *values, *map(type, values.values()))
        return cls(**values) if len(known) == len(values) else cls(**{name: values[name] for name in known})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=1024)
def _known(event: str, *shape: Any) -> tuple[str, ...]:
    """Those of the names in the first half of `shape` that the event has; ValueError where a kind in the other half does not fit.

    A long journal has few shapes and hundreds of thousands of lines.
    """
    half = len(shape) // 2
    kinds = _KINDS[event]
    given = {name: kind for name, kind in zip(shape[:half], shape[half:], strict=True) if name in kinds}
    if not all(issubclass(kind, kinds[name]) for name, kind in given.items()):
        raise ValueError("a value of another kind")  # one such line would end the reading of all runs
    return tuple(given)


def _values(line: str | bytes) -> Any:
    """A year's journals have millions of lines, which orjson reads several times as fast; NaN and Infinity it leaves to json."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)
