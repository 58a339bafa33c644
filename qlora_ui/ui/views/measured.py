"""Predicted beside measured memory, in the one way in which both mean the same."""

from __future__ import annotations

from qlora_ui.base.units import GIB, format_bytes


def predicted_and_measured(predicted: int | None, measured: int | None) -> str:
    """`predicted 9.3, measured 9.5 GiB (+2 %)`; what is missing is left out, nothing at all gives an empty text."""
    if predicted and measured:
        share = round((measured - predicted) / predicted * 100)
        if min(predicted, measured) >= GIB:
            return f"predicted {predicted / GIB:.1f}, measured {measured / GIB:.1f} GiB ({share:+d} %)"
        return f"predicted {format_bytes(predicted)}, measured {format_bytes(measured)} ({share:+d} %)"
    if predicted:
        return f"predicted {format_bytes(predicted)}"
    return f"measured {format_bytes(measured)}" if measured else ""
