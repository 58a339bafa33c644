"""A run in a thread of the app: started, and waited for."""

from __future__ import annotations

import logging
import threading
import traceback

from qlora_ui.runs.card import Turns
from qlora_ui.runs.ending import cause
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.events import Failed
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir

log = logging.getLogger(__name__)
_NO_MEMORY = ("failed to map segment", "annot allocate memory", "WinError 1455")
"""How loaders of libraries say it; the last one is Windows' page file."""


def run_in_thread(run: RunDir, turns: Turns) -> str:
    """Run the job and wait for its end; returns what the job could not say on its journal, empty where it could."""
    left_with: list[str] = []
    # A thread of its own for each run: what torch keeps for each thread goes with it.
    worker = threading.Thread(target=_work, args=(run, turns, left_with), name=f"train-{run.id}", daemon=True)
    worker.start()
    worker.join()
    return " ".join(left_with)


def _how_to_load(why: str) -> str:
    if any(words in why for words in _NO_MEMORY):
        return "There was too little memory for it: close other programs, then press Continue"
    return "Install the packages of requirements.txt"


def _work(run: RunDir, turns: Turns, left_with: list[str]) -> None:
    try:
        job = engine_object("job:run")
    except (ImportError, OSError) as error:
        what, why = "The training engine could not be loaded.", str(error)
        JournalWriter(run.journal_path).write(Failed(code="engine", what=what, why=why, fix=_how_to_load(why)), durable=True)
        return
    # The boundary: the journal cannot be written any more, or there is a bug of ours.
    try:
        job(run.path, turns=turns)
    except Exception as error:
        left_with.append(cause(error))
        # As text: a log record with the exception itself would hold the model.
        log.error("the job of run %s left with an error\n%s", run.id, traceback.format_exc())
