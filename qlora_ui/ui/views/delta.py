"""What moving one option costs: memory, trained numbers, adapter size, time; against the settings that it was moved from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ui.base.errors import SettingsError
from qlora_ui.base.units import GIB, MIB, format_bytes, format_count, format_duration
from qlora_ui.estimate.deltas import Cost, deltas
from qlora_ui.settings.option import Option
from qlora_ui.ui.undo import value_words

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft

NOTICEABLE_BYTES = MIB
NOTICEABLE_S = 1.0


def delta_words(draft: Draft, option: Option) -> str:
    """`r 16 → 64: +0.31 GiB, +126 M trained, adapter 50 → 200 MiB`; empty where nothing moved or nothing is known."""
    config, facts = draft.config, draft.facts
    if config is None or facts is None or option.section in ("model", "output"):
        return ""
    old, new = draft.baseline.get(option.path), config.get(option.path)
    if old == new or not {"memory", "time"} & set(option.meta.affects) or option.path == "data.sources":
        return ""
    try:
        moved = deltas(facts, config, draft.device, option.path, old, draft.shape)
    except SettingsError:  # the old value does not go with the other settings of now
        return ""
    costs = _costs(was=moved.after, now=moved.before)
    return f"{value_words(option, old)} → {value_words(option, new)}: {', '.join(costs) if costs else 'costs nothing you would notice'}"


def _costs(*, was: Cost, now: Cost) -> list[str]:
    costs = []
    memory = now.memory_bytes - was.memory_bytes
    if abs(memory) >= NOTICEABLE_BYTES:
        size = f"{abs(memory) / GIB:.2f} GiB" if 0.01 * GIB <= abs(memory) < 10 * GIB else format_bytes(abs(memory))
        costs.append(f"{_sign(memory)}{size}")
    params = now.trainable_params - was.trainable_params
    if params:
        costs.append(f"{_sign(params)}{format_count(abs(params))} trained numbers")
        costs.append(f"adapter {format_bytes(was.adapter_bytes)} → {format_bytes(now.adapter_bytes)}")
    seconds = now.total_s - was.total_s
    if abs(seconds) >= max(NOTICEABLE_S, 0.02 * was.total_s):
        costs.append(f"{_sign(seconds)}{format_duration(abs(seconds))}")
    return costs


def _sign(number: float) -> str:
    return "+" if number > 0 else "−"
