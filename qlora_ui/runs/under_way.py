"""Evaluations and exports under way, as their run's folder knows them: one that ended with its app is told of at the next visit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qlora_ui.base.files import read_json, write_json
from qlora_ui.runs.owner import describe_owner, is_alive
from qlora_ui.runs.run_dir import RunDir

_BEGUN = ".begun-"


def export_mark(run: RunDir, form: str) -> Path:
    """The file that is there while an export of that form is made."""
    return run.exports / f"{_BEGUN}{form}.json"


@contextlib.contextmanager
def marked(mark: Path, is_app_ending: Callable[[], bool]) -> Iterator[None]:
    """Keep a mark of what is worked on for the length of the block; it stays where the app ends before that is done."""
    with contextlib.suppress(OSError):
        write_json(mark, {"time": time.time(), "owner": describe_owner()})
    is_done = False
    try:
        yield
        is_done = True
    finally:
        if is_done or not is_app_ending():
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)


def ended_early(mark: Path, result: Path) -> float | None:
    """When the work of that mark was begun whose app ended before the result was there; None where there is none."""
    found = read_json(mark)
    if not isinstance(found, dict) or not isinstance(found.get("time"), int | float):
        return None
    begun = float(found["time"])
    with contextlib.suppress(OSError):
        if result.stat().st_mtime >= begun:
            return None
    return None if is_alive(found.get("owner"), lambda: begun) else begun


def forget_ended(run: RunDir) -> None:
    """Tell no more of exports whose app ended before they were done."""
    for form in exports_ended_early(run):
        export_mark(run, form).unlink(missing_ok=True)


def exports_ended_early(run: RunDir) -> dict[str, float]:
    """When exports were begun, by form, whose app ended before they were done."""
    found = {}
    for mark in sorted(run.exports.glob(f"{_BEGUN}*.json")):
        form = mark.stem.removeprefix(_BEGUN)
        if (begun := ended_early(mark, run.exports / form)) is not None:
            found[form] = begun
    return found
