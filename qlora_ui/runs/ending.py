"""The last event of a run whose job could not write it: nothing may look alive, or as if it waited, for ever."""

from __future__ import annotations

import logging

from qlora_ui.base.errors import QloraUiError
from qlora_ui.runs import process
from qlora_ui.runs.events import Failed
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import RunDir, Status
from qlora_ui.settings.run_config import RunConfig

log = logging.getLogger(__name__)


def end_unended(run: RunDir) -> None:
    """End a run whose job left without its last event, which is a bug of ours.

    One in its own process that was killed is left as it is: crashed, and ready to be continued.
    """
    if not run.path.is_dir():
        log.warning("the folder of run %s is gone", run.id)
        return
    view = read_run(run)
    was_killed = view.status is Status.CRASHED and view.started is not None and view.started.launcher == "process"
    if view.status.is_live or view.status is Status.QUEUED or (view.status is Status.CRASHED and not was_killed):
        run.release()
        JournalWriter(run.journal_path).write(
            Failed(
                step=view.step,
                what="The training job ended without a word.",
                why=process.last_words(run),
                fix="The file run.log in the run's folder may say more; Continue takes it up from the last checkpoint",
            ),
            durable=True,
        )


def end_unstarted(run: RunDir, error: Exception) -> None:
    """End a run whose job could not be started, where there is still something to write to and nobody who writes."""
    if not run.path.is_dir() or run.owner_is_alive():
        return
    try:
        JournalWriter(run.journal_path).write(
            Failed(what="The training job could not be started.", why=str(error), fix="Make room on the disk, then press Continue"),
            durable=True,
        )
    except OSError as unwritten:
        log.warning("run %s: its end could not be written: %s", run.id, unwritten)


def config_or_none(run: RunDir) -> RunConfig | None:
    """The settings of a run; None where they cannot be read."""
    try:
        return run.config()
    except QloraUiError:
        return None


def has_own_process(config: RunConfig | None) -> bool:
    """Whether the job has a process of its own, which outlives the app."""
    return config is not None and config.launch.where == "process"
