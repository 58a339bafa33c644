"""The sentence at the end of an evaluation. No torch: numbers in, words out."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.metrics import FEWEST_ROWS, Estimate

NOTICEABLE = 0.01
"""Nats a token below which two forms of a model count as equal."""


def verdict(
    losses: Mapping[str, float], gain: Estimate | None, four_bit_cost: Estimate | None, num_rows: int, *, is_replaced: bool = False
) -> dict[str, str]:
    """`{"kind", "text", "serve"}`: kind is better, same, unsure or worse; `serve` is the variant to keep.

    Where the base `is_replaced` since the adapter was trained nothing is advised but what the warning says.
    """
    parts = []
    if four_bit_cost is not None:
        cost = four_bit_cost.value
        is_chance = four_bit_cost.low is not None and four_bit_cost.low <= 0
        is_felt = cost >= NOTICEABLE and not is_chance
        parts.append(f"4-bit cost {_nats(cost)} nats a token" if is_felt else "4-bit cost nothing that can be measured")
    kind = "unsure"
    if gain is not None:
        kind, words = _judged(gain, num_rows)
        parts.append(words)
    serve = _best_form(losses)
    if kind == "worse" and not is_replaced:
        parts[-1] += ": try an earlier checkpoint or fewer passes"
    if serve and kind not in ("worse", "same") and not is_replaced:
        parts.append(_ADVICE[serve])
    text = "; ".join(parts)
    return {"kind": kind, "text": f"{text[:1].upper()}{text[1:]}." if text else "", "serve": serve}


def _judged(gain: Estimate, num_rows: int) -> tuple[str, str]:
    """Kind and words of what the adapter gains."""
    low, high = gain.low, gain.high
    if low is None or high is None:
        loss = f"is {_nats(abs(gain.value))} nats a token {'lower' if gain.value > 0 else 'higher'}"
        rows = "1 row is" if num_rows == 1 else f"{num_rows} rows are"
        return "unsure", f"with your adapter the loss {loss}, but {rows} too few to rely on: hold back at least {FEWEST_ROWS}"
    interval = f"(95 %: {_nats(low)} to {_nats(high)})"
    if low > -NOTICEABLE and high < NOTICEABLE:
        return "same", f"your adapter changes next to nothing on these rows {interval}"
    if low > 0:
        return "better", f"your adapter gains {_nats(gain.value)} nats a token {interval}"
    if high < 0:
        interval = f"(95 %: {_nats(-high)} to {_nats(-low)})"
        return "worse", f"your adapter is worse than the base by {_nats(-gain.value)} {interval}"
    return "unsure", f"{num_rows} rows are too few to tell whether your adapter helps {interval}"


def _nats(value: float) -> str:
    """Two decimals; the first digit that is not 0 where that would round to nothing."""
    return f"{value:.2f}" if abs(value) >= NOTICEABLE else f"{round(value, 3) + 0.0:g}"


_ADVICE = {
    "merged-dequantized": "to take it away in one piece, choose the whole model as trained: closest to what you trained",
    "merged-original": "to take it away in one piece, choose the whole model on the original weights: it does better there",
    "adapter-4bit": "keep base and adapter apart: both whole models are worse",
}


def _best_form(losses: Mapping[str, float]) -> str:
    """The merge that loses nothing; of two such, the one of training unless the other is noticeably better."""
    if "adapter-4bit" not in losses:
        return ""
    limit = losses["adapter-4bit"] + NOTICEABLE
    dequantized, original = losses.get("merged-dequantized"), losses.get("merged-original")
    if original is not None and original <= limit and (dequantized is None or original < dequantized - NOTICEABLE):
        return "merged-original"
    if dequantized is not None and dequantized <= limit:
        return "merged-dequantized"
    return "adapter-4bit" if dequantized is not None or original is not None else ""
