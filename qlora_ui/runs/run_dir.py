"""One run on the disk: who may write what, and what its state is.

config.yaml      whoever makes the run, once
events.jsonl     job, append
.events-short.jsonl  whoever reads a long journal: the same in short (`runs.digest`)
run.log          job's process, append
owner.json       job, while it lives; before that whoever started a process for it
.reserve         launcher, while it waits; job, while it lives: room for the last event on a disk that gets full
.room-adapter    job, while it trains: room for the result
control/*        requests of page and command line; the job answers on the journal and removes them
data/            the normalised rows of this run, job, once
checkpoints/     job
adapter/         job, written aside and renamed into place last
exports/         exports
evaluation.json  evaluation, the last one
comparison.json  page: the last answers to own questions, side by side, and the votes on them
receipt.json     job, last
failed-N.json    process N of the job's, where it cannot go on (`runs/parts.py`)
about.json       page and command line: name, notes, tags that the user changes later
"""

from __future__ import annotations

import filecmp
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import QloraUiError, RunError, SettingsError
from qlora_ui.base.files import change_json, give_room, read_json, write_json, write_text
from qlora_ui.base.units import format_duration
from qlora_ui.runs import owner
from qlora_ui.runs.events import (
    Event,
    Failed,
    Finished,
    Paused,
    Queued,
    Started,
    Stopped,
)
from qlora_ui.runs.journal import drop_reserve, make_reserve
from qlora_ui.runs.moved import moved_here
from qlora_ui.settings.migrate import as_then
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The file that makes a folder an adapter."""
ADAPTER_SIDECAR = "qlora_ui.json"
"""Beside an adapter: what it is."""
MANIFEST = "manifest.json"
"""In a checkpoint: its files with sizes and SHA-256."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Status(StrEnum):
    """State of a run; derived, never stored."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"
    CRASHED = "crashed"
    """The journal says running, or nothing any more, and its owner is gone: power cut, kill, closed terminal. One click resumes."""
    UNREADABLE = "unreadable"
    """Of a row in a list: the journal may not be read."""

    @property
    def is_live(self) -> bool:
        """Whether a job works on it now."""
        return self in (Status.STARTING, Status.RUNNING)

    @property
    def can_resume(self) -> bool:
        """Whether training can go on from a checkpoint, if there is one."""
        return self in (Status.PAUSED, Status.STOPPED, Status.FAILED, Status.CRASHED)


class Request(StrEnum):
    """What can be asked of a running job."""

    STOP = "stop"
    """Finish the step, save, keep the adapter."""
    STOP_NOW = "stop_now"
    """End at once; the last checkpoint stays."""
    PAUSE = "pause"
    """Save, free the card, wait for Continue."""
    SAVE_NOW = "save_now"
    """Write a checkpoint after this step and go on."""

    def promise(self, when: str = "after this step") -> str:
        """What the one who asks is told, in a sentence."""
        return {
            Request.STOP: f"Stopping {when}; what was learned is saved.",
            Request.STOP_NOW: "Stopping now; the last checkpoint stays.",
            Request.PAUSE: f"Pausing {when}; the memory is freed and you can continue later.",
            Request.SAVE_NOW: f"Saving a checkpoint {when}; the run goes on.",
        }[self]


@dataclass(frozen=True, slots=True)
class RunDir:
    """The files of a run, by name."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id, which is its folder's name."""
        return self.path.name

    @property
    def default_name(self) -> str:
        """What a person calls a run that has no name: `smollm2-135m-instruct, 24 Nov 16:26`; the id where it is not one of ours."""
        parts = re.match(r"^(\d{8}-\d{6})-(.+)-[0-9a-f]{4}$", self.id)
        if not parts:
            return self.id
        try:
            started = time.strptime(parts[1], "%Y%m%d-%H%M%S")
        except ValueError:
            return self.id
        return f"{parts[2]}, {started.tm_mday} {_MONTHS[started.tm_mon - 1]} {started.tm_hour}:{started.tm_min:02}"

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def journal_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "run.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def adapter_sha256(self) -> str:
        """Which adapter the run has now, as evaluations and exports of it note; empty where it says nothing."""
        sidecar = read_json(self.adapter / ADAPTER_SIDECAR)
        if isinstance(sidecar, dict):
            return str(sidecar.get("adapter_sha256") or "")
        newest = self.newest_checkpoint
        manifest = read_json(newest / MANIFEST) if newest is not None and not self.has_adapter else None
        _, digest = manifest["files"].get(ADAPTER_WEIGHTS, (0, "")) if isinstance(manifest, dict) else (0, "")
        return str(digest)

    @property
    def has_adapter(self) -> bool:
        """Whether a result lies there, of whichever attempt."""
        return (self.adapter / ADAPTER_WEIGHTS).is_file()

    @property
    def newest_checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint that holds an adapter."""
        steps = self.saved_steps()
        return self.checkpoints / f"checkpoint-{steps[0]}" if steps else None

    @property
    def stand_in(self) -> str | None:
        """Name of the checkpoint that stands for a result that is not there (yet); None where there is one, or nothing was saved."""
        newest = None if self.has_adapter else self.newest_checkpoint
        return newest.name if newest is not None else None

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def evaluating_path(self) -> Path:
        """There while the run is evaluated."""
        return self.path / "evaluating.json"

    @property
    def comparison_path(self) -> Path:
        return self.path / "comparison.json"

    @property
    def receipt_path(self) -> Path:
        return self.path / "receipt.json"

    def config(self) -> RunConfig:
        """The settings of the run; raises RunError where they cannot be read."""
        try:
            text = self.config_path.read_text(encoding="utf-8")
        except OSError as error:
            what, fix = f"The settings of run {self.id} cannot be read.", "Put the file back, or give yourself the right to read it"
            raise RunError(what, why=str(error), fix=fix, code="run-unreadable") from None
        except UnicodeDecodeError as error:
            what, why = f"The settings of run {self.id} cannot be read.", f"config.yaml is not UTF-8: {error}"
            raise RunError(what, why=why, fix="Save it as UTF-8", code="run-unreadable") from None
        try:
            return moved_here(RunConfig.parse(as_then(read_yaml(text, f"{self.id}/config.yaml"))), self.path.parent.parent)
        except SettingsError as error:
            unknown = [problem.where for problem in error.problems if problem.code == "unknown-option"]
            if not unknown:
                raise
        raise RunError(
            f"Run {self.id} has settings that this app does not know: {', '.join(unknown[:5])}.",
            why="Another version of the app made it, or its config.yaml was edited",
            fix="Update QLoRA UI",
            code="run-unreadable",
        )

    def saved_steps(self) -> list[int]:
        """Steps whose checkpoint holds an adapter, newest first."""
        numbers = [path.parent.name.removeprefix("checkpoint-") for path in self.checkpoints.glob(f"checkpoint-*/{ADAPTER_WEIGHTS}")]
        return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)

    def other_steps(self) -> list[int]:
        """`saved_steps` without the one that is the run's adapter: it would stand beside itself."""
        return [step for step in self.saved_steps() if not self._is_result(step)]

    def _is_result(self, step: int) -> bool:
        try:
            # Read once: filecmp knows a pair whose sizes and times have not changed.
            return filecmp.cmp(self.adapter / ADAPTER_WEIGHTS, self.checkpoints / f"checkpoint-{step}" / ADAPTER_WEIGHTS, shallow=False)
        except OSError:
            return False  # one of them was removed meanwhile

    def write_config(self, config: RunConfig) -> None:
        """Write the settings; done once, when the run is made."""
        write_text(self.config_path, config.to_yaml())

    def about(self) -> dict[str, Any]:
        """Name, notes and tags as the user last changed them: `{"name", "notes", "tags"}`, missing keys unchanged."""
        value = read_json(self.path / "about.json")
        kinds = {"name": str, "notes": str, "tags": list}
        return {key: value[key] for key, kind in kinds.items() if isinstance(value.get(key), kind)} if isinstance(value, dict) else {}

    def name(self, config: RunConfig | None) -> str:
        """What a person calls the run: as renamed, else as its settings (None where they cannot be read) have it, else model and date."""
        return str(self.about().get("name") or (config.output.name if config else "") or self.default_name)

    @property
    def called(self) -> str:
        """`name`, whether its settings can be read or not."""
        try:
            return self.name(self.config())
        except QloraUiError:
            return self.name(None)

    def write_about(self, **changes: Any) -> None:
        """Change name, notes or tags."""
        change_json(self.path / "about.json", lambda about: about.update(changes))

    def request(self, request: Request) -> None:
        """Ask the job for something; it answers with a RequestSeen on the journal. A folder that was deleted is not made anew."""
        if self.path.is_dir():
            write_text(self.path / "control" / request.value, "")

    def pending_requests(self) -> list[Request]:
        """What was asked and not yet taken."""
        return [request for request in Request if (self.path / "control" / request.value).exists()]

    def take_request(self, request: Request) -> bool:
        """Remove a request; True for the one who got it."""
        try:
            (self.path / "control" / request.value).unlink()
        except FileNotFoundError:
            return False
        return True

    def claim(self, pid: int | None = None) -> None:
        """Write this process down as the owner; the job does it first of all. `pid` is another one that will start the job."""
        make_reserve(self.journal_path)
        write_json(self._owner_path, owner.describe_owner(pid))

    def release(self) -> None:
        """Forget the owner; the job does it last of all."""
        drop_reserve(self.journal_path)
        give_room(self.adapter)
        self._owner_path.unlink(missing_ok=True)

    def has_owner(self) -> bool:
        """Whether some process claimed the run and did not release it; it may be dead by now."""
        return self._owner_path.exists()

    def owner_is_alive(self) -> bool:
        """Whether the process that claimed the run still lives, as far as can be known from here (see `owner.is_alive`)."""
        return owner.is_alive(read_json(self._owner_path), self._last_sign)

    def is_ours(self) -> bool:
        """Whether the process that claimed the run works on this machine: on the cards that the next run would need."""
        claimed = read_json(self._owner_path)
        return isinstance(claimed, dict) and owner.is_on_this_machine(claimed)

    def refusal(self, what: str, *, why: str, fix: str) -> RunError:
        """The error for what cannot be done while a job works on the run; one that cannot be seen from here is named."""
        host = owner.elsewhere(read_json(self._owner_path))
        if host:
            silent_s = max(time.time() - self._last_sign(), 0.0)
            why = f"The computer or container “{host}” works on it; its last sign of life is {format_duration(silent_s)} old"
            fix = (
                f"Stop it there. If that one is gone, wait: {format_duration(owner.SILENT_S)} after its last sign the run counts as crashed"
            )
        return RunError(what, why=why, fix=fix, code="run-live")

    @property
    def _owner_path(self) -> Path:
        return self.path / "owner.json"

    def _last_sign(self) -> float:
        """When the job last wrote anything, in Unix seconds."""
        return max(_stat(path)[1] for path in (self._owner_path, self.journal_path, self.log_path)) / 1e9

    @property
    def made_at(self) -> float:
        """When it was made, in Unix seconds, as its id says; for those whose journal does not."""
        try:
            return time.mktime(time.strptime(self.id[:15], "%Y%m%d-%H%M%S"))
        except (ValueError, OverflowError):
            return _stat(self.path)[1] / 1e9

    def journal_size(self) -> int:
        """Bytes of the journal; 0 where there is none."""
        return _stat(self.journal_path)[0]

    def version_on_disk(self) -> str:
        """Changes with the journal, the settings, and the name, notes or tags that the user gives; cheap enough for thousands of runs."""
        folder = str(self.path)
        return f"{_stat(folder + '/events.jsonl')[0]}.{_stat(folder + '/about.json')[1]}.{self.settings_version()}"

    def settings_version(self) -> int:
        """Changes where somebody mends or spoils config.yaml."""
        return _stat(str(self.path) + "/config.yaml")[1]


def status_after(last: Event | None, is_alive: Callable[[], bool], *, has_plan: bool) -> Status:
    """The state of a run whose last event that decides one is `last`; `is_alive` is asked only where it matters."""
    # A run is made with its first event: one that has none has lost its journal, as a power cut leaves it.
    state = _STATUS[type(last)] if last is not None else Status.RUNNING
    if not state.is_live:
        return state
    if not is_alive():
        return Status.CRASHED
    return Status.RUNNING if has_plan else Status.STARTING


def _stat(path: Path | str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


_STATUS: dict[type[Event], Status] = {
    Queued: Status.QUEUED,
    Started: Status.RUNNING,
    Finished: Status.DONE,
    Stopped: Status.STOPPED,
    Paused: Status.PAUSED,
    Failed: Status.FAILED,
}
