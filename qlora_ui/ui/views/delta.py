"""What moving one option costs: memory, trained numbers, adapter size, time; against the settings that it was moved from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qlora_ui.base.errors import SettingsError
from qlora_ui.base.units import GIB, MIB, format_bytes, format_count, format_duration
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.memory import MemoryEstimate, estimate_memory
from qlora_ui.settings.option import Option
from qlora_ui.ui.undo import value_words

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft

ADAPTER_BYTES = 4
"""The adapter is saved in fp32."""
NOTICEABLE_BYTES = MIB
NOTICEABLE_S = 1.0


def delta_words(draft: Draft, option: Option) -> str:
    """`r 16 → 64: +0.31 GiB, +126 M trained, adapter 50 → 200 MiB`; empty where nothing moved or nothing is known."""
    config, facts, after = draft.config, draft.facts, draft.memory
    if config is None or facts is None or after is None or option.section in ("model", "output"):
        return ""
    old, new = draft.baseline.get(option.path), config.get(option.path)
    if old == new or not {"memory", "time"} & set(option.meta.affects) or option.path == "data.sources":
        return ""
    try:
        before_config = config.changed({option.path: old})
    except SettingsError:  # the old value does not go with the other settings of now
        return ""
    before = estimate_memory(facts, before_config, draft.device, draft.shape)
    costs = _costs(before, after)
    if draft.duration is not None and draft.shape is not None and "time" in option.meta.affects:
        was = estimate_duration(facts, before_config, draft.device, draft.shape.num_rows, draft.shape.mean_tokens)
        moved = draft.duration.total_s - was.total_s
        if abs(moved) >= max(NOTICEABLE_S, 0.02 * was.total_s):
            costs.append(f"{'+' if moved > 0 else '−'}{format_duration(abs(moved))}")
    words = f"{_short(option, old)} → {_short(option, new)}"
    return f"{words}: {', '.join(costs) if costs else 'costs nothing you would notice'}"


def _costs(before: MemoryEstimate, after: MemoryEstimate) -> list[str]:
    costs = []
    moved = after.total_bytes - before.total_bytes
    if abs(moved) >= NOTICEABLE_BYTES:
        size = f"{abs(moved) / GIB:.2f} GiB" if 0.01 * GIB <= abs(moved) < 10 * GIB else format_bytes(abs(moved))
        costs.append(f"{'+' if moved > 0 else '−'}{size}")
    params = after.trainable_params - before.trainable_params
    if params:
        costs.append(f"{'+' if params > 0 else '−'}{format_count(abs(params))} trained numbers")
        sizes = [format_bytes(ADAPTER_BYTES * estimate.trainable_params) for estimate in (before, after)]
        costs.append(f"adapter {sizes[0]} → {sizes[1]}")
    return costs


def _short(option: Option, value: Any) -> str:
    return value_words(option, value)
