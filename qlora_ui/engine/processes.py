"""A run in several processes: who writes, who goes first, how many there are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

from qlora_ui.base.errors import RunError
from qlora_ui.base.progress import Cancelled
from qlora_ui.engine.failures import PROCESS_LOST, StopRun, is_lost_process
from qlora_ui.runs import parts
from qlora_ui.runs.events import Ended, Event, Failed, Finished, Started
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir

T = TypeVar("T")
LOOK_S = 0.2
SAYING_S = 2.0
"""A process that fails writes down why within this time."""
_DONE, _STOPPED, _FAILED = b"done", b"stopped", b"failed"
_NUMBERS = count()
"""The processes of a run go through the same phases."""


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: bytes, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def compare_set(self, key: str, expected: str, value: str, /) -> bytes: ...


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


def first_process_first(work: Callable[[], T], wants_end: Callable[[], bool]) -> T:
    """Let the first process make files, the others then find them; all go on together, or end together where one is stopped, or fails.

    They look into the store where the processes met: a collective call of theirs would end them after ten minutes on a card (NCCL's
    patience), which a model's download may take, and would not tell them that another has ended.
    """
    if num_processes() == 1:
        return work()
    key, rank = f"first-process-{next(_NUMBERS)}", int(os.environ["RANK"])
    return in_turn(work, _store(), key, rank=rank, num=num_processes(), wants_end=wants_end)


def in_turn(work: Callable[[], T], store: Store, key: str, *, rank: int, num: int, wants_end: Callable[[], bool]) -> T:
    """`work` of the first process, then of the `num - 1` others; raises StopRun or RunError in all where one does not come through."""
    verdict, first = f"{key}-verdict", f"{key}-first"

    def decide(end: bytes) -> None:
        # The first word counts, so that nobody stops where others have already gone on.
        store.compare_set(verdict, "", end.decode())

    def wait(*keys: str) -> None:
        while not any(store.check([one]) for one in keys):
            if wants_end():
                decide(_STOPPED)
            time.sleep(LOOK_S)

    if rank:
        wait(first, verdict)
    if not store.check([verdict]):
        end = _FAILED
        try:
            made = work()
            end = _DONE
        except (StopRun, Cancelled):
            end = _STOPPED
            raise
        finally:
            if end != _DONE:
                decide(end)
        if rank == 0:
            store.set(first, _DONE)
        if store.add(f"{key}-done", 1) == num:
            decide(_DONE)
        wait(verdict)
    match store.get(verdict):
        case b"done":
            return made
        case b"stopped":
            raise StopRun
    fix = "Mend it there, then continue the run on all machines"
    raise RunError("Another process of this run has ended.", why="Its own machine says why", fix=fix, code=PROCESS_LOST)


def _store() -> Store:
    from accelerate import PartialState
    from torch.distributed.distributed_c10d import _get_default_store  # torch has no public name for it

    PartialState()
    store: Store = _get_default_store()
    return store


def leave_failure(run: RunDir, failure: Failed) -> Failed:
    """Say, in a process that does not write the journal, why it cannot go on: the first one may be waiting for it."""
    failed = replace(failure, time=time.time())
    if failed.code != PROCESS_LOST:  # what broke the connection to it is told by whom it befell
        parts.leave_failure(run, int(os.environ["RANK"]), failed)
    return failed


def failure_of_another(run: RunDir, error: BaseException) -> Failed | None:
    """What another process left, where `error` is that it does not answer any more."""
    if not is_first_process() or num_processes() == 1 or not is_lost_process(error):
        return None
    until = time.monotonic() + SAYING_S
    while (left := parts.failure_left(run)) is None and time.monotonic() < until:
        time.sleep(LOOK_S)
    # Told now, as the end of this process.
    return replace(left, time=0.0) if left else None


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
