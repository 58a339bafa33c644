"""The sentence at the end of an evaluation. No torch: numbers in, words out."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ui.catalog.metrics import Estimate

NOTICEABLE = 0.01
"""Nats a token below which two forms of a model count as equal."""


def verdict(losses: Mapping[str, float], gain: Estimate | None, four_bit_cost: Estimate | None, num_rows: int) -> dict[str, str]:
    """`{"kind", "text", "serve"}`: kind is better, unsure or worse; `serve` is the variant to keep."""
    parts = []
    if four_bit_cost is not None:
        cost = four_bit_cost.value
        parts.append(f"4-bit cost {cost:.2f} nats a token" if cost >= NOTICEABLE else "4-bit cost nothing that can be measured")
    kind = "unsure"
    if gain is not None:
        interval = f"95 %: {gain.low:.2f} to {gain.high:.2f}"
        if gain.low > 0:
            kind = "better"
            parts.append(f"your adapter gains {gain.value:.2f} nats a token ({interval})")
        elif gain.high < 0:
            kind = "worse"
            parts.append(
                f"your adapter is worse than the base by {-gain.value:.2f} ({interval}): try an earlier checkpoint or fewer passes"
            )
        else:
            parts.append(f"{num_rows} rows are too few to tell whether your adapter helps ({interval})")
    serve = _best_form(losses)
    if serve and kind != "worse":
        parts.append(_ADVICE[serve])
    text = "; ".join(parts)
    return {"kind": kind, "text": f"{text[:1].upper()}{text[1:]}." if text else "", "serve": serve}


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
