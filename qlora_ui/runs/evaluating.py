"""An evaluation under way, as its run's folder knows it: one that ended with its app is told of at the next visit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from qlora_ui.base.files import read_json, write_json
from qlora_ui.runs.owner import describe_owner, is_alive
from qlora_ui.runs.run_dir import RunDir


@contextlib.contextmanager
def marked(run: RunDir, is_app_ending: Callable[[], bool]) -> Iterator[None]:
    """Mark a run as being evaluated for the length of the block; the mark stays where the app ends meanwhile."""
    with contextlib.suppress(OSError):
        write_json(run.evaluating_path, {"time": time.time(), "owner": describe_owner()})
    try:
        yield
    finally:
        if not is_app_ending():
            with contextlib.suppress(OSError):
                run.evaluating_path.unlink(missing_ok=True)


def ended_early(run: RunDir) -> float | None:
    """When the evaluation was begun whose app ended before it was done; None where there is none."""
    mark = read_json(run.evaluating_path)
    if not isinstance(mark, dict) or not isinstance(mark.get("time"), int | float):
        return None
    begun = float(mark["time"])
    with contextlib.suppress(OSError):
        if run.evaluation_path.stat().st_mtime >= begun:
            return None
    return None if is_alive(mark.get("owner"), lambda: begun) else begun
