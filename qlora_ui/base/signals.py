"""What asks a program to end."""

from __future__ import annotations

import signal

_HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""Windows has none."""


def end_signals() -> tuple[int, ...]:
    """Ctrl-C, SIGTERM, and a terminal that goes away unless the program was started to outlive it (nohup)."""
    always = (signal.SIGINT, signal.SIGTERM)
    return always if _HANGUP is None or signal.getsignal(_HANGUP) is signal.SIG_IGN else (*always, _HANGUP)


def is_hangup(number: int) -> bool:
    """Whether the terminal went away. System and shell may both say so: a second one is no second wish."""
    return _HANGUP is not None and number == _HANGUP
