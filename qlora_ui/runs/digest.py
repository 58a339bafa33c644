"""The journal of a long run in short, for opening it quickly: all that happened, and its curves with fewer points.

It lies beside the journal, is made by whoever reads a long one and can be made again at any time. It holds lines of the journal as they
are, up to a place that it names; what came after that is read from the journal itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

from qlora_ui.base.files import write_text
from qlora_ui.runs.events import Event, MemoryMeasured, from_line

LONG_POINTS = 30_000
"""Points of curves that a journal has for which this is worth it: they are read in half a second of processor time."""
KEPT_POINTS = 10_000
"""Of each curve, more than a chart has dots."""
LAST_LINES = 500
"""At the end of a journal stand as they are: pace and time left are taken from them."""
_VERSION = 1
_MARK_BYTES = 4096
_STEP, _LOSS = b'{"event":"StepLogged",', re.compile(rb'"loss":(-?[\d.eE+-]+|-?Infinity|NaN)[,}]')


def read_digest(journal: Path) -> tuple[list[Event], int] | None:
    """The events that tell a journal in short, and the byte up to which they do; None where there is none, or it is of another journal."""
    try:
        with digest_path(journal).open("rb") as file:
            head = json.loads(file.readline(4096))
            if head["version"] != _VERSION or head["mark"] != _mark(journal, head["bytes"]):
                return None
            return [event for line in file if (event := from_line(line)) is not None], int(head["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_digest(journal: Path, end: int) -> None:
    """Write the first `end` bytes of a journal in short; where that cannot be written, the journal is read whole the next time."""
    try:
        lines = _lines(journal, end)
        head = {"version": _VERSION, "bytes": end, "mark": _mark(journal, end)}
        kept = b"\n".join(lines[place] for place in sorted(_kept(lines)))
        # A second may have passed: it may be deleted, and writing makes folders, or be another.
        if not head["mark"] or _mark(journal, end) != head["mark"]:
            return
        write_text(digest_path(journal), f"{json.dumps(head)}\n{kept.decode()}\n")
    except (OSError, ValueError):
        return


def digest_path(journal: Path) -> Path:
    """Where it lies."""
    return journal.with_name(".events-short.jsonl")


def _lines(journal: Path, end: int) -> list[bytes]:
    with journal.open("rb") as file:
        return file.read(end).splitlines()


def _mark(journal: Path, end: int) -> str:
    """Names what a journal holds up to a byte by its beginning and its end: nobody changes what stands in between."""
    with journal.open("rb") as file:
        begin = file.read(min(_MARK_BYTES, end))
        file.seek(max(end - _MARK_BYTES, 0))
        last = file.read(min(_MARK_BYTES, end))
    return hashlib.sha256(begin + last).hexdigest() if len(last) == min(_MARK_BYTES, end) else ""


def _kept(lines: list[bytes]) -> set[int]:
    """Places of the lines that stay."""
    losses: list[tuple[int, float]] = []
    used: list[tuple[int, float]] = []
    peaks: list[tuple[int, float]] = []
    kept = set(range(max(len(lines) - LAST_LINES, 0), len(lines)))
    for place, line in enumerate(lines):
        # Most lines are of steps, and only their loss is asked for here.
        if line.startswith(_STEP) and (found := _LOSS.search(line)):
            losses.append((place, float(found[1])))
            continue
        event = from_line(line)
        match event:
            case MemoryMeasured() if event.at == "tick":
                used.append((place, event.measured_bytes or 0))
                peaks.append((place, event.peak_allocated_bytes or event.process_bytes or 0))
            case _:
                # What was before and after it as well: a run that is taken up again goes on from there.
                kept |= {place - 1, place, place + 1}
    for curve in (losses, used):
        kept |= _thinned(curve)
    if peaks:
        kept.add(max(peaks, key=lambda point: point[1])[0])
    return kept & set(range(len(lines)))


def _thinned(curve: list[tuple[int, float]]) -> set[int]:
    """Places of the first and last point, and of the lowest and highest of equal stretches."""
    if len(curve) <= KEPT_POINTS:
        return {place for place, _ in curve}
    num_parts = KEPT_POINTS // 2
    bounds = [round(part * len(curve) / num_parts) for part in range(num_parts + 1)]
    kept = {curve[0][0], curve[-1][0]}
    for low, high in pairwise(bounds):
        part = curve[low:high]
        # A loss that is no number is told: it compares as the highest.
        kept |= {min(part, key=_height)[0], max(part, key=_height)[0]}
    return kept


def _height(point: tuple[int, float]) -> float:
    return point[1] if point[1] == point[1] else float("inf")
