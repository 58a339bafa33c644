"""Why another process of a run's job could not go on: a file of each, since only the first process writes the journal.

That one may wait for the other then, on a card for ever; whoever ends the run tells what was left.
"""

from __future__ import annotations

from dataclasses import replace

from qlora_ui.base.files import write_text
from qlora_ui.runs.events import Failed, from_line, to_line
from qlora_ui.runs.run_dir import RunDir


def leave_failure(run: RunDir, rank: int, failed: Failed) -> None:
    """Say why process `rank`, counted from 0, cannot go on; nothing where the user has deleted the run's folder."""
    if run.path.is_dir():
        write_text(run.path / f"failed-{rank}.json", to_line(failed) + "\n")


def failure_left(run: RunDir) -> Failed | None:
    """What the first other process that could not go on said, and which one it was; None where none said anything."""
    found: list[tuple[float, Failed]] = []
    for path in run.path.glob("failed-*.json"):
        failed = from_line(path.read_bytes())
        if isinstance(failed, Failed):
            number = int(path.stem.removeprefix("failed-")) + 1
            found.append((failed.time, replace(failed, why=f"It happened in process {number} of this run. {failed.why}".strip())))
    return min(found, key=lambda item: item[0])[1] if found else None


def clear_failures(run: RunDir) -> None:
    """Forget what processes of an earlier attempt left."""
    for path in run.path.glob("failed-*.json"):
        path.unlink(missing_ok=True)
