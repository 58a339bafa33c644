"""The sentence at the end of an evaluation. No torch: numbers in, words out."""

from __future__ import annotations

import math
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
        felt = f"in 4-bit the base finds the words of these rows {_likelier(-cost)} in full (loss {_nats(cost)} nats a token higher)"
        parts.append(felt if is_felt else "4-bit cost nothing that can be measured")
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
    """Kind and words of what the adapter gains: what it means for a word first, the loss in its unit beside it."""
    low, high = gain.low, gain.high
    found = f"your adapter finds the words of these rows {_likelier(gain.value)} the base does"
    loss = f"loss {_moved(gain.value)}"
    if low is None or high is None:
        rows = "1 row is" if num_rows == 1 else f"{num_rows} rows are"
        return "unsure", f"{found} ({loss}), but {rows} too few to rely on: hold back at least {FEWEST_ROWS}"
    ends = dict.fromkeys((_moved(low), _moved(high)))
    either_way = f"(95 %: loss {'from ' * (len(ends) - 1)}{' to '.join(ends)})"
    if low > -NOTICEABLE and high < NOTICEABLE:
        return "same", f"your adapter changes next to nothing on these rows {either_way}"
    if low > 0:
        return "better", f"{found} ({loss}; 95 %: {_nats(low)} to {_nats(high)})"
    if high < 0:
        return "worse", f"{found} ({loss}; 95 %: {_nats(-high)} to {_nats(-low)})"
    return "unsure", f"{num_rows} rows are too few to tell whether your adapter helps {either_way}"


def _likelier(gain: float) -> str:
    """What a loss that is lower by `gain` nats means for the right word, which is e to that times as likely on average."""
    times = math.exp(min(gain, 20.0))
    if times >= 2:
        return f"{times:.1f} times as likely as" if times < 10 else f"{times:,.0f} times as likely as"
    share = abs(times - 1)
    return f"{100 * share:.0f} % {'more' if gain > 0 else 'less'} likely than" if share >= 0.005 else "as likely as"


def _moved(gain: float) -> str:
    """A gain as what the loss did: `0.40 nats a token lower`."""
    return f"{_nats(abs(gain))} nats a token {'lower' if gain >= 0 else 'higher'}" if round(gain, 3) else "unchanged"


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
