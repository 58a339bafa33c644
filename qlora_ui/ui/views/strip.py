"""The top strip, from a run and the cards."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ui.base.units import format_bytes, format_duration, format_percent
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.runs.read import RunView
from qlora_ui.ui.markup import escape

THEME_BUTTON = '<button type="button" class="q-icon-button" data-theme-toggle aria-label="Light or dark" title="Light or dark">◐</button>'


def frame_html(chip: str, memory: str) -> str:
    """The strip around its parts, which are ready-made HTML."""
    return (
        '<header class="q-strip"><span class="q-brand">QLoRA UI</span>'
        f'<span class="q-strip-run" role="status">{chip}</span><span class="q-strip-memory">{memory}</span>{THEME_BUTTON}</header>'
    )


def run_chip(view: RunView | None) -> str:
    """State, percent and time left of the current run, as a link to the Train tab."""
    if view is None or not view.status.is_live:
        return ""
    words = [view.status.value]
    if view.progress is not None:
        words.append(format_percent(view.progress))
    if view.time_left_s is not None:
        words.append(f"{format_duration(view.time_left_s)} left")
    return f'<button type="button" class="q-chip q-chip-live" data-go="train">{escape(" · ".join(words))}</button>'


def memory_text(gpus: Sequence[GpuState]) -> str:
    """Memory of the first card in words."""
    if not gpus:
        return ""
    gpu = gpus[0]
    return f'<span class="q-num">{escape(format_bytes(gpu.used_bytes))} of {escape(format_bytes(gpu.total_bytes))}</span>'
