"""The top strip, from a run and the cards."""

from __future__ import annotations

from qlora_ui.base.units import MIB, format_bytes, format_duration, format_percent
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.hardware.system import SystemState
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Status
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.memory_bar import Segment, bar_html
from qlora_ui.ui.views.storage import DISK_WORDS, disk_sentence

THEME_BUTTON = (
    '<button type="button" class="q-icon-button" data-theme-toggle aria-label="Light or dark" title="Light or dark">'
    '<svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="7" fill="none" stroke="currentColor" stroke-width="1.6"/>'
    '<path d="M10 3a7 7 0 0 1 0 14z" fill="currentColor"/></svg></button>'
)
OURS = "var(--q-accent)"
STEP_BYTES = 16 * MIB
"""Memory of a computer moves all the time: steps of this size keep the strip from being sent anew every second."""


def frame_html(chip: str, memory: str) -> str:
    """The strip around its parts, which are ready-made HTML."""
    return (
        '<header class="q-strip"><h1 class="q-brand">QLoRA UI</h1>'
        f'<span class="q-strip-run" role="status" aria-live="polite">{chip}</span>'
        f'<span class="q-strip-memory">{memory}</span>{THEME_BUTTON}</header>'
    )


def disk_chip(trouble: str, folder: str) -> str:
    """What is wrong with the workspace's disk (`base.files.disk_trouble`), as a link to where it is told; empty where nothing is."""
    if not trouble:
        return ""
    title, words = escape(disk_sentence(trouble, folder)), escape(DISK_WORDS[trouble])
    return f'<button type="button" class="q-chip q-chip-bad" id="q-disk-chip" data-go="runs" title="{title}">{words}</button>'


def _has_last_step(view: RunView) -> bool:
    return view.progress == 1.0 or (view.phase is not None and view.phase.phase == "finish")


def run_chip(view: RunView | None) -> str:
    """State, percent and time left of the current run, as a link to the Train tab; empty where nothing runs or waits."""
    if view is None or not (view.status.is_live or view.status in (Status.QUEUED, Status.PAUSED)):
        return ""
    words, left = [view.status.value.capitalize()], ""
    is_finishing = view.status is Status.RUNNING and _has_last_step(view)
    if is_finishing:
        # The last step is taken, the result is being saved: “Running, 100 %” would look as if it hung.
        words = ["Finishing"]
    elif view.progress is not None:
        words.append(format_percent(view.progress))
    if view.time_left_s is not None and view.status.is_live and not is_finishing:
        left = f'<span class="q-run-left"> · {escape(format_duration(view.time_left_s))} left</span>'
    live = " q-chip-live" if view.status.is_live else ""
    said = f"<span>{escape(' · '.join(words))}{left}</span>"
    return f'<button type="button" class="q-chip{live}" id="q-run-chip" data-go="train">{said}</button>'


def card_memory(gpu: GpuState, predicted_bytes: int | None) -> str:
    """Memory of a card: others, ours, free, and the mark of what the running job was predicted to need."""
    ours = gpu.ours_bytes or 0
    others = max(gpu.used_bytes - ours, 0)
    segments = [Segment("Others", others, "var(--part-others)"), Segment("QLoRA UI", ours, OURS)]
    if gpu.ours_bytes is None:
        segments = [Segment("In use", gpu.used_bytes, OURS)]
    mark = others + predicted_bytes if predicted_bytes else None
    return _memory(segments, gpu.total_bytes, gpu.used_bytes, mark, gpu.name)


def ram_memory(system: SystemState, predicted_bytes: int | None) -> str:
    """Memory of a computer without a card, in steps of STEP_BYTES."""
    used, ours = (
        round(size / STEP_BYTES) * STEP_BYTES for size in (system.ram_total_bytes - system.ram_available_bytes, system.process_bytes)
    )
    others = max(used - ours, 0)
    segments = [Segment("Others", others, "var(--part-others)"), Segment("QLoRA UI", min(ours, used), OURS)]
    mark = others + predicted_bytes if predicted_bytes else None
    return _memory(segments, system.ram_total_bytes, used, mark, "Memory")


def _memory(segments: list[Segment], total_bytes: int, used_bytes: int, mark_bytes: int | None, name: str) -> str:
    free = max(total_bytes - used_bytes, 0)
    summary = ", ".join(f"{segment.words} {format_bytes(segment.num_bytes)}" for segment in segments)
    predicted = f", predicted up to {format_bytes(mark_bytes)}" if mark_bytes else ""
    label = f"{name}: {summary}, free {format_bytes(free)} of {format_bytes(total_bytes)}{predicted}"
    bar = bar_html(segments, total_bytes, mark_bytes=mark_bytes, label=label)
    ours = format_bytes(segments[-1].num_bytes)
    words = f'<span class="q-strip-name">{escape(name)}</span> {escape(ours)} ours · {escape(format_bytes(free))} free'
    return f'<span class="q-strip-bar" title="{escape(label)}">{bar}</span><span class="q-strip-words q-num">{words}</span>'
