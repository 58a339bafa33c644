"""The last event of a run whose job could not write it: nothing may look alive, or as if it waited, for ever."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import disk_full_in_words
from qlora_ui.runs import process
from qlora_ui.runs.events import Failed
from qlora_ui.runs.journal import JournalWriter, drop_reserve
from qlora_ui.runs.parts import failure_left
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import LaunchSection

log = logging.getLogger(__name__)


def end_unended(run: RunDir, why: str = "") -> None:
    """End a run whose job left without its last event: the disk took no line any more, or there is a bug of ours.

    `why` is what is known of it. One in its own process that was killed is left as it is, crashed and ready to be continued, but where
    another of its processes left why it could not go on: the first, which waits for it, is then ended by the launcher.
    """
    if not run.path.is_dir():
        log.warning("the folder of run %s is gone", run.id)
        return
    if end_as_another_said(run):
        return
    view = read_run(run)
    was_killed = view.status is Status.CRASHED and view.started is not None and view.started.launcher == "process"
    if view.status.is_live or view.status is Status.QUEUED or (view.status is Status.CRASHED and not was_killed):
        if view.status is Status.QUEUED and view.config is not None and waited_in_vain(view, view.config.launch):
            _end(run, process.apart(view.config.launch))
            return
        more = "" if why else "The file run.log in the run's folder may say more; "
        failed = Failed(
            step=view.step,
            what="The training job could not go on." if why else "The training job ended without a word.",
            why=why or process.last_words(run),
            fix=f"{more}Continue takes it up from the last checkpoint",
        )
        _end(run, failed)


def waited_in_vain(view: RunView, launch: LaunchSection) -> bool:
    """Whether the job never began since other machines did not come."""
    waited_s = time.time() - view.phase.time if view.phase is not None else 0.0
    return launch.num_machines > 1 and waited_s > process.MEETING_S / 2


def end_as_another_said(run: RunDir) -> bool:
    """End a crashed run with what another of its processes left, where one left something; returns whether that is so."""
    left = failure_left(run)
    # Most left nothing, and their journals may be long.
    if left is None or (view := read_run(run)).status is not Status.CRASHED:
        return False
    _end(run, replace(left, time=0.0, step=view.step))
    return True


def _end(run: RunDir, failed: Failed) -> None:
    JournalWriter(run.journal_path).write(failed, durable=True)
    run.release()


def end_unstarted(run: RunDir, error: Exception) -> None:
    """End a run whose job could not be started, where there is still something to write to and nobody who writes."""
    if not run.path.is_dir() or run.owner_is_alive():
        return
    try:
        JournalWriter(run.journal_path).write(
            Failed(what="The training job could not be started.", why=cause(error), fix="When that is mended, press Continue"),
            durable=True,
        )
        drop_reserve(run.journal_path)
    except OSError as unwritten:
        log.warning("run %s: its end could not be written: %s", run.id, unwritten)


def cause(error: Exception) -> str:
    """Why a job could not work, in a sentence."""
    said = disk_full_in_words(error)
    return (
        said.problems[0].what if said else str(error) if isinstance(error, OSError | QloraUiError) else f"{type(error).__name__}: {error}"
    )


def config_or_none(run: RunDir) -> RunConfig | None:
    """The settings of a run; None where they cannot be read."""
    try:
        return run.config()
    except QloraUiError:
        return None


def has_own_process(config: RunConfig | None) -> bool:
    """Whether the job has a process of its own, which outlives the app."""
    return config is not None and config.launch.where == "process"
