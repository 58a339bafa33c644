"""Where each form of a model stands: a dot on a common scale, a line a form; under 600 px the name stands above its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ui.ui.markup import escape

EDGE_PCT = 6.0
"""Room beside the outermost marks, of the scale's width."""


def dotplot_html(result: Mapping[str, Any]) -> str:
    """The losses of an evaluation's `scores` with the whiskers of its differences; empty where nothing was scored."""
    scores: Sequence[Mapping[str, Any]] = result.get("scores") or []
    known = {row["variant"]: float(row["loss"]) for row in scores if "loss" in row}
    if not known:
        return ""
    whiskers = intervals(result, known)
    ends = [*known.values(), *(end for pair in whiskers.values() for end in pair)]
    low, high = min(ends), max(ends)
    if high == low:
        low, high = low - 0.05, high + 0.05

    def place(value: float) -> float:
        return EDGE_PCT + (100 - 2 * EDGE_PCT) * (value - low) / (high - low)

    lines = []
    for row in scores:
        title = f'<span class="q-dot-label">{escape(row["title"])}</span>'
        if "loss" not in row:
            lines.append(f'{title}<span class="q-dot-track q-small">{escape(row.get("skipped", "not looked at"))}</span><span></span>')
            continue
        variant, loss = str(row["variant"]), float(row["loss"])
        whisker = ""
        if variant in whiskers:
            left, right = map(place, whiskers[variant])
            whisker = f'<i class="q-whisker" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
        kind = "adapter" if "adapter" in variant else "merged" if "merged" in variant else "base"
        mark = f'<i class="q-mark q-mark-{kind}" style="left:{place(loss):.2f}%"></i>'
        lines.append(f'{title}<span class="q-dot-track">{whisker}{mark}</span><b class="q-dot-value">{loss:.3f}</b>')
    digits = 2 if high - low >= 0.05 else 3
    ticks = "".join(f'<i style="left:{place(tick):.2f}%">{tick:.{digits}f}</i>' for tick in (low, (low + high) / 2, high))
    words = "; ".join(f"{row['title']} {row['loss']:.3f}" for row in scores if "loss" in row)
    return (
        f'<div class="q-dotplot" role="img" aria-label="{escape(f"Loss by form: {words}")}">{"".join(lines)}'
        f'<span class="q-dot-ticks">{ticks}</span></div>'
    )


def intervals(result: Mapping[str, Any], known: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Variant to the ends of its whisker, from the intervals of the two differences that were bootstrapped."""
    base = known.get("base-4bit")
    found: dict[str, tuple[float, float]] = {}
    for key, variant in (("gain", "adapter-4bit"), ("four_bit_cost", "base-full")):
        estimate = result.get(key)
        if base is not None and estimate and estimate["low"] is not None and variant in known:
            # A loss is never negative, whatever a resampled difference says.
            found[variant] = (max(base - estimate["high"], 0.0), max(base - estimate["low"], 0.0))
    return found
