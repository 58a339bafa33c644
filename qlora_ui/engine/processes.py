"""A run in several processes: who writes, who goes first, how many there are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from qlora_ui.engine.failures import PROCESS_LOST, Failure, is_lost_process
from qlora_ui.runs import parts
from qlora_ui.runs.events import Ended, Event, Failed, Finished, Started
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir

T = TypeVar("T")


def num_processes() -> int:
    """How many processes share this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process writes the run's files."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_of_further_machine() -> bool:
    """Whether this process speaks for its machine in a run of several machines, and is not the one that writes the run."""
    return not is_first_process() and os.environ.get("LOCAL_RANK") == "0"


def launcher_name() -> str:
    """`process` under `accelerate launch`, else `thread`."""
    return "process" if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ else "thread"


def first_process_first(work: Callable[[], T]) -> T:
    """Let the first process make files, the others then find them."""
    if num_processes() == 1:
        return work()
    from accelerate import PartialState

    with PartialState().main_process_first():
        return work()


def leave_failure(run: RunDir, failure: Failure) -> Failed:
    """Say, in a process that does not write the journal, why it cannot go on: the first one may be waiting for it."""
    failed = Failed(time=time.time(), **{item.name: getattr(failure, item.name) for item in fields(failure)})
    if failure.code != PROCESS_LOST:  # what broke the connection to it is told by whom it befell
        parts.leave_failure(run, int(os.environ["RANK"]), failed)
    return failed


def failure_of_another(run: RunDir, error: BaseException) -> Failure | None:
    """What another process left, where `error` is that it does not answer any more."""
    left = parts.failure_left(run) if is_first_process() and num_processes() > 1 and is_lost_process(error) else None
    return Failure(**{item.name: getattr(left, item.name) for item in fields(Failure)}) if left else None


class SilentJournal(JournalWriter):
    """What the other processes write to: only one writes the journal."""

    def __init__(self) -> None:
        self.step = 0

    def write(self, event: Event, *, durable: bool = False) -> bool:
        """Nothing."""
        return True


class PartJournal(JournalWriter):
    """The journal of a further machine: that its part began and how it ended. The numbers and the result are on the first."""

    def write(self, event: Event, *, durable: bool = False) -> bool:
        """Beginning and end."""
        if isinstance(event, Finished):
            event = replace(event, reason="this machine's part is done; curve and result are on the first machine")
        return super().write(event, durable=durable) if isinstance(event, Started | Ended) else True


def journal_of(path: Path) -> JournalWriter:
    """What this process writes of the run: all, its machine's beginning and end, or nothing."""
    if is_first_process():
        return JournalWriter(path)
    return PartJournal(path) if is_first_of_further_machine() else SilentJournal()
