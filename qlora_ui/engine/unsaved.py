"""A disk without room in a run: a checkpoint that it did not take, what that means for the run, and the room kept for the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_ui.base.errors import Problem, QloraUiError, RunError
from qlora_ui.base.files import disk_in_words, keep_room
from qlora_ui.base.units import MIB, format_bytes
from qlora_ui.engine.failures import is_disk_full
from qlora_ui.runs.events import Noticed
from qlora_ui.runs.run_dir import RunDir


class Unsaved(RunError):
    """The run has to end, or be continued, at a step whose checkpoint the disk did not take; the weights in memory are whole."""


def unsaved_because(error: BaseException) -> Problem | None:
    """Why the disk did not take a checkpoint; None where the disk is not to blame."""
    if is_disk_full(error):
        why = error.problems[0].what if isinstance(error, QloraUiError) else ""
        return Problem("", "The disk is full.", why, "Free some space", "disk-full")
    told = error if isinstance(error, QloraUiError) and error.code == "disk-away" else disk_in_words(error)
    return told.problems[0] if told else None


def notice_of(reason: Problem, step: int, *, goes_on: bool) -> Noticed:
    """What is told of it at once."""
    return Noticed(
        level="warning",
        code=reason.code,
        what=f"The checkpoint of step {step} was not saved: {_as_part(reason.what)}",
        why=f"{_ended(reason.why)} {'The run goes on; the' if goes_on else 'The'} checkpoints before are whole".lstrip(),
        fix=reason.fix,
    )


def error_of(reason: Problem) -> Unsaved:
    """The end of a run that would have to be continued from that very step."""
    return Unsaved(
        f"The last steps could not be saved: {_as_part(reason.what)}",
        why=reason.why,
        fix=f"{_ended(reason.fix)} Then continue the run; the checkpoints before are whole",
        code=reason.code,
    )


def keep_room_for_result(run: RunDir, model: Any, folder: Path) -> Noticed | None:
    """Take room for the adapter that the run ends with, of this model from that folder; what to say where there is none.

    A disk fills up in the hours until then, and the last steps are in memory only when they cannot be saved.
    """
    trained = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    needed = trained + sum(file.stat().st_size for file in folder.glob("tokenizer*")) + MIB
    try:
        keep_room(run.adapter, needed)
    except OSError as error:
        what = f"No room could be kept for the result, which takes {format_bytes(needed)}."
        reason = unsaved_because(error) or Problem("", str(error), "", "Look after the disk", "disk-refused")
        return Noticed(level="warning", code=reason.code, what=what, why=reason.what, fix=f"{reason.fix} while it trains")
    return None


def _as_part(sentence: str) -> str:
    return f"{sentence[:1].lower()}{sentence[1:]}"


def _ended(sentence: str) -> str:
    return f"{sentence.rstrip('.')}." if sentence else ""
