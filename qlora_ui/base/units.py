"""Numbers as people read them: never more digits than are known."""

from __future__ import annotations

import math

KIB = 1024
MIB = 1024**2
GIB = 1024**3


def format_bytes(num_bytes: float) -> str:
    """Bytes as `312 bytes`, `312 KiB`, `50 MiB` or `9.3 GiB`."""
    size = abs(num_bytes)
    if size >= 100 * GIB:
        return f"{num_bytes / GIB:.0f} GiB"
    if size >= 0.995 * GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    if size >= 0.995 * MIB:
        return f"{num_bytes / MIB:.0f} MiB"
    if size >= 0.5 * KIB or not size:
        return f"{num_bytes / KIB:.0f} KiB"
    return f"{num_bytes:.0f} bytes"


def format_duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `3 min 20 s`, `1 h 12 min`, `2 d 3 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    total = round(seconds)
    if total < 60:
        return f"{total} s" if total or seconds == 0 else "under 1 s"
    minutes, rest = divmod(total, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if minutes < 60:
        return f"{round(total / 60)} min"
    hours, minutes = divmod(round(total / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(total / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_count(count: float) -> str:
    """A count as `940`, `12.3k`, `4.9 M` or `1.54 B`."""
    size = abs(count)
    if size >= 999.5e6:
        return f"{count / 1e9:.2f} B"
    if size >= 999.5e3:
        return f"{count / 1e6:.1f} M"
    if size >= 9_999.5:
        return f"{count / 1e3:.1f}k"
    return f"{count:,.0f}"


def format_percent(share: float) -> str:
    """A share of one as `3 %`; `0.4 %` below one percent."""
    value = share * 100
    return f"{value:.0f} %" if abs(value) >= 1 or value == 0 else f"{value:.1g} %"
