"""Memory as a bar: parts in their own colours against the whole device, the numbers beside it in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_ui.base.units import format_bytes
from qlora_ui.estimate.memory import PART_WORDS, MemoryEstimate
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.ui.markup import escape
from qlora_ui.ui.theme import part_colour


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the bar. `is_predicted` draws it hatched, since nobody has measured it."""

    words: str
    num_bytes: int
    colour: str
    is_predicted: bool = False


def bar_html(segments: Sequence[Segment], whole_bytes: int, *, mark_bytes: int | None = None, label: str = "") -> str:
    """A stacked bar of `segments` against `whole_bytes`; `mark_bytes` draws the dashed line of a prediction.

    What goes over the whole is drawn up to a tenth beyond a line that stands for the device's end.
    """
    total = sum(segment.num_bytes for segment in segments)
    scale = max(whole_bytes, min(total, round(1.1 * whole_bytes)), 1)
    pieces = []
    for segment in segments:
        width = 100 * segment.num_bytes / scale
        if width < 0.15:
            continue
        kind = " q-bar-predicted" if segment.is_predicted else ""
        words = f"{segment.words}: {format_bytes(segment.num_bytes)}"
        pieces.append(f'<i class="q-bar-piece{kind}" style="width:{width:.2f}%;--c:{segment.colour}" title="{escape(words)}"></i>')
    marks = ""
    if mark_bytes is not None:
        marks += f'<b class="q-bar-mark" style="left:{min(100 * mark_bytes / scale, 100):.2f}%"></b>'
    if total > whole_bytes:
        marks += f'<b class="q-bar-end" style="left:{100 * whole_bytes / scale:.2f}%"></b>'
    summary = label or ", ".join(f"{segment.words} {format_bytes(segment.num_bytes)}" for segment in segments)
    return f'<div class="q-bar" role="img" aria-label="{escape(summary)}">{"".join(pieces)}{marks}</div>'


def estimate_segments(memory: MemoryEstimate) -> list[Segment]:
    """The predicted parts in their order; parts of zero bytes are left out."""
    return [Segment(PART_WORDS[name], size, part_colour(name), True) for name, size in memory.parts.items() if size > 0]


def bound_html(memory: MemoryEstimate, device: DeviceProfile, why: str) -> str:
    """What is needed at most, where that is more than is free and nobody knows yet how much it is: no bar and no verdict."""
    where = "memory" if device.is_cpu else escape(device.name)
    return (
        f'<div class="q-predict"><div class="q-predict-line"><span class="q-big q-num">{escape(format_bytes(memory.total_bytes))}</span>'
        f'<span class="q-small">at most, of <span class="q-num">{escape(format_bytes(device.free_bytes))}</span> free {where}</span>'
        f'<span class="q-chip">not known yet</span></div><p class="q-small">{escape(why)}</p></div>'
    )


def prediction_html(memory: MemoryEstimate, device: DeviceProfile, *, is_at_most: bool = False) -> str:
    """The prediction against a device: bar, one sentence, and folded the parts with what they hang on."""
    segments = estimate_segments(memory)
    others = [Segment("In use by others", device.others_bytes, "var(--part-others)")] if device.others_bytes else []
    room = device.free_bytes
    verdict, kind = fit_word(memory.total_bytes, device)
    word = "at most" if is_at_most else "predicted"
    rows = "".join(
        f'<li><i class="q-swatch" style="--c:{segment.colour}"></i><span>{escape(segment.words)}</span>'
        f'<span class="q-num">{escape(format_bytes(segment.num_bytes))}</span></li>'
        for segment in segments
    )
    notes = f'<p class="q-small">{escape(" ".join(memory.notes))}</p>' if memory.notes else ""
    where = "memory" if device.is_cpu else escape(device.name)
    return (
        f'<div class="q-predict"><div class="q-predict-line"><span class="q-big q-num">{escape(format_bytes(memory.total_bytes))}</span>'
        f'<span class="q-small">{word}, of <span class="q-num">{escape(format_bytes(room))}</span> free {where}</span>'
        f'<span class="q-chip q-chip-{kind}">{escape(verdict)}</span></div>'
        f"{bar_html([*others, *segments], device.total_bytes)}"
        f'<details class="q-fold-plain"><summary>What it is made of</summary><ul class="q-parts">{rows}</ul>{notes}</details></div>'
    )


def fit_word(total_bytes: int, device: DeviceProfile) -> tuple[str, str]:
    """(`fits`, `tight` or `too large`; the chip's kind) of so much memory on a device. Tight: under a tenth would be left."""
    if total_bytes > device.free_bytes:
        return "too large", "bad"
    return ("tight", "warn") if total_bytes > 0.9 * device.free_bytes else ("fits", "good")
